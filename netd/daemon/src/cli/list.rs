//! Which interfaces and networks are there?

use serde::Serialize;
use steppe_daemon::text::{self, UNKNOWN, plain};
use steppe_proto::net::{Interface, ListRequest, NetworkInfo, NetworksRequest};

use super::ask::{Daemon, wait_for};
use super::settings::needed;
use super::show::{self, InterfaceJson, some};
use super::{Arguments, CliError, JSON_VERSION, Outcome};

/// What `list --json` prints.
#[derive(Debug, Serialize)]
struct List {
    version: u32,
    networks: Vec<NetworkJson>,
    interfaces: Vec<InterfaceJson>,
}

/// A network as JSON has it.
#[derive(Debug, Serialize)]
struct NetworkJson {
    name: String,
    kind: String,
    mtu: u32,
    available: bool,
    reason: Option<String>,
    ipv4: Option<String>,
    ipv6: Option<String>,
    pool: u64,
    used: u64,
}

impl From<&NetworkInfo> for NetworkJson {
    fn from(network: &NetworkInfo) -> Self {
        Self {
            name: network.name.clone(),
            kind: network.kind.clone(),
            mtu: network.mtu,
            available: network.unavailable.is_empty(),
            reason: some(&network.unavailable),
            ipv4: some(&network.ipv4),
            ipv6: some(&network.ipv6),
            pool: network.pool,
            used: network.used,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let path = needed(arguments)?.socket(arguments);
    let (networks, interfaces) = wait_for(async {
        let mut daemon = Daemon::find(path).await?;
        let networks = daemon
            .ask(NetworksRequest {}, async |client, request| {
                client.networks(request).await
            })
            .await?;
        let interfaces = daemon
            .ask(ListRequest::default(), async |client, request| {
                client.list(request).await
            })
            .await?;
        Ok::<_, CliError>((networks.networks, interfaces.interfaces))
    })??;
    Ok(if arguments.json {
        text::json(&List {
            version: JSON_VERSION,
            networks: networks.iter().map(NetworkJson::from).collect(),
            interfaces: interfaces.iter().map(InterfaceJson::from).collect(),
        })
    } else {
        page(&networks, &interfaces)
    }
    .into())
}

const HEAD: [&str; 7] = ["NETWORK", "KIND", "MTU", "IPV4", "USED", "IPV6", "HERE"];

fn page(networks: &[NetworkInfo], interfaces: &[Interface]) -> String {
    let or_unknown = |text: &str| some(&plain(text)).unwrap_or_else(|| UNKNOWN.to_owned());
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for network in networks {
        let here = network.unavailable.is_empty();
        rows.push(vec![
            plain(&network.name),
            plain(&network.kind),
            network.mtu.to_string(),
            or_unknown(&network.ipv4),
            if network.pool == 0 {
                UNKNOWN.to_owned()
            } else {
                format!("{}/{}", network.used, network.pool)
            },
            or_unknown(&network.ipv6),
            if here { "yes" } else { "no" }.to_owned(),
        ]);
        if !here {
            notes.push_str(&format!(
                "{}: {}\n",
                plain(&network.name),
                plain(&network.unavailable)
            ));
        }
    }
    let mut page = text::table(&rows) + &notes + "\n";
    if interfaces.is_empty() {
        page.push_str("no machine has an interface\n");
        return page;
    }
    let mut rows = vec![show::HEAD.map(str::to_owned).to_vec()];
    rows.extend(interfaces.iter().map(show::row));
    page.push_str(&text::table(&rows));
    for note in interfaces.iter().flat_map(show::notes) {
        page.push_str(&note);
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use steppe_proto::net::{Owner, Port, Protocol};

    use super::*;

    fn networks() -> Vec<NetworkInfo> {
        vec![
            NetworkInfo {
                name: "default".to_owned(),
                kind: "nat".to_owned(),
                mtu: 1500,
                ipv4: "10.83.0.0/20".to_owned(),
                pool: 4093,
                used: 1,
                ..NetworkInfo::default()
            },
            NetworkInfo {
                name: "tenant-a".to_owned(),
                kind: "vlan".to_owned(),
                mtu: 1500,
                unavailable: "the kernel has no VLANs\u{1b}[2J".to_owned(),
                ..NetworkInfo::default()
            },
        ]
    }

    fn interface() -> Interface {
        Interface {
            owner: Some(Owner {
                instance: "0123456789abcdef".to_owned(),
                id: "b2f8.1".to_owned(),
            }),
            network: "default".to_owned(),
            kind: "nat".to_owned(),
            tap: "ndtabcdefghij".to_owned(),
            uid: 1_900_000_000,
            queues: 2,
            mac: "02:00:00:00:00:01".to_owned(),
            ipv4: "10.83.0.7/20".to_owned(),
            ipv4_gateway: "10.83.0.1".to_owned(),
            mtu: 1500,
            carrier: true,
            ports: vec![Port {
                protocol: Protocol::Tcp.into(),
                host_ip: "192.0.2.1".to_owned(),
                host_port: 8080,
                guest_port: 80,
            }],
            faults: vec!["it is no port of ndbdefault".to_owned()],
            ..Interface::default()
        }
    }

    #[test]
    fn a_table_and_sentences_where_they_are_due() {
        let expected = "\
NETWORK   KIND  MTU   IPV4          USED    IPV6  HERE
default   nat   1500  10.83.0.0/20  1/4093  -     yes
tenant-a  vlan  1500  -             -       -     no
tenant-a: the kernel has no VLANs[2J

TAP            OWNER                    NIC  NETWORK  VLAN  MAC                IPV4          IPV6  OPEN
ndtabcdefghij  0123456789abcdef/b2f8.1  0    default  -     02:00:00:00:00:01  10.83.0.7/20  -     yes
ndtabcdefghij: tcp 192.0.2.1:8080 leads to port 80
ndtabcdefghij: it is no port of ndbdefault
";
        assert_eq!(page(&networks(), &[interface()]), expected);
        assert!(page(&[], &[]).ends_with("\n\nno machine has an interface\n"));
    }

    #[test]
    fn the_json_has_always_the_same_members() {
        let printed = serde_json::to_value(List {
            version: JSON_VERSION,
            networks: networks().iter().map(NetworkJson::from).collect(),
            interfaces: vec![InterfaceJson::from(&interface())],
        })
        .unwrap();
        let expected = json!({
            "version": 1,
            "networks": [
                {
                    "name": "default", "kind": "nat", "mtu": 1500, "available": true, "reason": null,
                    "ipv4": "10.83.0.0/20", "ipv6": null, "pool": 4093, "used": 1,
                },
                {
                    "name": "tenant-a", "kind": "vlan", "mtu": 1500, "available": false,
                    "reason": "the kernel has no VLANs\u{1b}[2J", "ipv4": null, "ipv6": null, "pool": 0, "used": 0,
                },
            ],
            "interfaces": [{
                "instance": "0123456789abcdef", "id": "b2f8.1", "index": 0, "network": "default", "kind": "nat",
                "tap": "ndtabcdefghij", "uid": 1_900_000_000, "queues": 2, "mac": "02:00:00:00:00:01",
                "ipv4": "10.83.0.7/20", "ipv4_gateway": "10.83.0.1", "ipv6": null, "ipv6_gateway": null,
                "dns": [], "mtu": 1500, "vlan": null, "trunk": [], "carrier": true,
                "ports": [{ "protocol": "tcp", "host_ip": "192.0.2.1", "host_port": 8080, "guest_port": 80 }],
                "faults": ["it is no port of ndbdefault"],
            }],
        });
        assert_eq!(printed, expected);
    }
}
