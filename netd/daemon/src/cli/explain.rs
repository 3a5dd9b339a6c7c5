//! Which addresses and names has a machine, on whichever host?
//!
//! All of it is computed from the configuration and the identity: no daemon is asked, and nothing is looked at.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use netd_plan::identity::{ipv4_candidates, ipv6, mac};
use netd_plan::name::{owner_altname, tap_name};
use netd_plan::{Config, Identity, Kind, Mode, Network, Owner, Vid, Vids};
use serde::Serialize;
use steppe_daemon::text::{self, UNKNOWN, plain};

use super::settings::needed;
use super::{Arguments, CliError, JSON_VERSION, Outcome};

/// Candidates for an IPv4 address that are shown.
const CANDIDATES: usize = 4;

/// What `explain --json` prints.
#[derive(Debug, Serialize)]
struct Explained {
    version: u32,
    identity: String,
    networks: Vec<On>,
}

/// What a machine has on one network.
#[derive(Debug, Serialize)]
struct On {
    network: String,
    kind: &'static str,
    vlan: Option<u16>,
    trunk: bool,
    bridge: String,
    mac: String,
    link_local: String,
    ipv6: Option<String>,
    /// In the order in which they are tried.
    ipv4_candidates: Vec<String>,
    tap: Option<String>,
    altname: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let loaded = needed(arguments)?;
    let usage = |text: String| CliError::Usage(text, "netd explain".to_owned());
    let words = arguments.identity.as_deref().unwrap_or_default();
    let identity = Identity::new(words).map_err(|refusal| usage(refusal.sentence))?;
    let owner = arguments.owner.as_deref().map(owner).transpose().map_err(usage)?;
    let vlan = arguments
        .vlan
        .as_deref()
        .map(vlan_words)
        .transpose()
        .map_err(usage)?;
    let networks = chosen(&loaded.config, arguments.network.as_deref()).map_err(CliError::failed)?;
    let on = networks
        .into_iter()
        .map(|network| on(network, &identity, owner.as_ref(), vlan));
    let explained = Explained {
        version: JSON_VERSION,
        identity: words.to_owned(),
        networks: on.collect(),
    };
    Ok(if arguments.json {
        text::json(&explained)
    } else {
        page(&explained)
    }
    .into())
}

/// An owner, as `INSTANCE/ID`.
pub(super) fn owner(words: &str) -> Result<Owner, String> {
    let (instance, id) = words
        .split_once('/')
        .ok_or_else(|| format!("owner {words:?} is not of the form INSTANCE/ID"))?;
    Owner::new(instance, id).map_err(|refusal| refusal.sentence)
}

/// A port of a vlan-aware network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vlan {
    Access(Vid),
    Trunk,
}

fn vlan_words(words: &str) -> Result<Vlan, String> {
    if words == "trunk" {
        return Ok(Vlan::Trunk);
    }
    let vid = words.parse().ok().and_then(Vid::new);
    vid.map(Vlan::Access)
        .ok_or_else(|| format!("VLAN {words:?} is neither 1 to {} nor the word trunk", Vid::MAX))
}

/// The networks that are meant: all, or the named one.
fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<Vec<&'a Network>, String> {
    let all = config.networks.values();
    let Some(name) = name else {
        return Ok(all.collect());
    };
    let one: Vec<&Network> = all.filter(|network| network.name.as_str() == name).collect();
    if one.is_empty() {
        let known: Vec<&str> = config.networks.keys().map(|name| name.as_str()).collect();
        return Err(format!(
            "network {name:?} is not known: there are {}",
            known.join(", ")
        ));
    }
    Ok(one)
}

fn on(network: &Network, identity: &Identity, owner: Option<&Owner>, vlan: Option<Vlan>) -> On {
    let mode = match (&network.kind, vlan) {
        (Kind::VlanAware { .. }, Some(Vlan::Trunk)) => Mode::Trunk(Vids::default()),
        (Kind::VlanAware { .. }, Some(Vlan::Access(vid))) => Mode::Access(vid),
        (Kind::VlanAware { vid: Some(vid), .. }, None) => Mode::Access(*vid),
        // Jobs must name a VLAN there; a trunk is what they may have without one.
        (Kind::VlanAware { vid: None, .. }, None) => Mode::Trunk(Vids::default()),
        _ => Mode::Plain,
    };
    let mac = mac(&network.name, &mode, identity);
    On {
        network: network.name.to_string(),
        kind: network.kind_name(),
        vlan: match mode {
            Mode::Access(vid) => Some(vid.get()),
            _ => None,
        },
        trunk: matches!(mode, Mode::Trunk(_)),
        bridge: network.bridge(),
        mac: mac.to_string(),
        link_local: mac.link_local().to_string(),
        ipv6: network
            .ipv6
            .as_ref()
            .map(|own| format!("{}/{}", ipv6(own.prefix, mac), own.prefix.prefix_len())),
        ipv4_candidates: candidates(network, &mode, identity),
        tap: owner.map(|owner| tap_name(owner, 0).to_string()),
        altname: owner.map(|owner| owner_altname(owner, 0)),
    }
}

/// The first addresses that "auto" tries.
fn candidates(network: &Network, mode: &Mode, identity: &Identity) -> Vec<String> {
    let Some(ipv4) = &network.ipv4 else {
        return Vec::new();
    };
    let mut seen = BTreeSet::<Ipv4Addr>::new();
    ipv4_candidates(&network.name, mode, identity, &ipv4.pool)
        .filter(|address| ipv4.is_usable(*address) && seen.insert(*address))
        .take(CANDIDATES)
        .map(|address| format!("{address}/{}", ipv4.subnet.prefix_len()))
        .collect()
}

fn page(explained: &Explained) -> String {
    let mut page = format!("identity  {}\n", plain(&explained.identity));
    for on in &explained.networks {
        let vlan = match (on.vlan, on.trunk) {
            (Some(vlan), _) => format!(", VLAN {vlan}"),
            (None, true) => ", trunk".to_owned(),
            (None, false) => String::new(),
        };
        page.push_str(&format!("\n{} ({}{vlan})\n", on.network, on.kind));
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| UNKNOWN.to_owned());
        let ipv4 = match on.ipv4_candidates.as_slice() {
            [] => UNKNOWN.to_owned(),
            candidates => candidates.join(", "),
        };
        let mut lines = vec![
            ("MAC", on.mac.clone()),
            ("link-local", on.link_local.clone()),
            ("IPv6", or_none(&on.ipv6)),
            ("IPv4", ipv4),
            ("bridge", plain(&on.bridge)),
        ];
        if let (Some(tap), Some(altname)) = (&on.tap, &on.altname) {
            lines.push(("tap", tap.clone()));
            lines.push(("altname", altname.clone()));
        }
        for (name, value) in lines {
            page.push_str(&format!("  {name:<10}  {value}\n"));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[network.lan]
kind = "bridge"
bridge = "br0"
ipv4 = { subnet = "10.1.0.0/29", gateway = "10.1.0.1" }
ipv6 = { prefix = "fd00:1::/64" }

[network.trunk]
kind = "vlan-aware"
uplink = "eth1"
vids = ["100-200"]
vid = 100
"#;

    fn explained(vlan: Option<Vlan>) -> Vec<On> {
        let (config, _) = Config::parse(&[("test".to_owned(), CONFIG.to_owned())]).unwrap();
        let identity = Identity::new("default/web/web/vm/0").unwrap();
        let owner = owner("i/x").unwrap();
        let networks = chosen(&config, None).unwrap().into_iter();
        networks
            .map(|network| on(network, &identity, Some(&owner), vlan))
            .collect()
    }

    #[test]
    fn what_a_machine_has_never_changes() {
        let explained = Explained {
            version: JSON_VERSION,
            identity: "default/web/web/vm/0".to_owned(),
            networks: explained(None),
        };
        let expected = "\
identity  default/web/web/vm/0

lan (bridge)
  MAC         da:59:2c:a7:bf:05
  link-local  fe80::d859:2cff:fea7:bf05
  IPv6        fd00:1::d859:2cff:fea7:bf05/64
  IPv4        10.1.0.3/29, 10.1.0.2/29, 10.1.0.5/29, 10.1.0.4/29
  bridge      br0
  tap         ndtvf4f2hfedm
  altname     nd.i.x.0

trunk (vlan-aware, VLAN 100)
  MAC         c6:16:f6:08:30:09
  link-local  fe80::c416:f6ff:fe08:3009
  IPv6        -
  IPv4        -
  bridge      ndbtrunk
  tap         ndtvf4f2hfedm
  altname     nd.i.x.0
";
        assert_eq!(page(&explained), expected);
    }

    #[test]
    fn a_port_of_another_vlan_has_other_addresses() {
        let of = |vlan| {
            let on = explained(vlan).remove(1);
            (on.vlan, on.trunk, on.mac)
        };
        let (vlan, trunk, mac) = of(None);
        assert_eq!((vlan, trunk), (Some(100), false));
        assert_eq!(of(Some(vlan_words("100").unwrap())), (vlan, trunk, mac.clone()));
        let other = of(Some(vlan_words("101").unwrap()));
        assert_eq!((other.0, other.1), (Some(101), false));
        let tagged = of(Some(vlan_words("trunk").unwrap()));
        assert_eq!((tagged.0, tagged.1), (None, true));
        assert!(mac != other.2 && mac != tagged.2 && other.2 != tagged.2);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let (config, _) = Config::parse(&[("test".to_owned(), CONFIG.to_owned())]).unwrap();
        assert_eq!(
            chosen(&config, Some("wan")).unwrap_err(),
            "network \"wan\" is not known: there are lan, trunk"
        );
        for words in ["0", "4095", "access", ""] {
            assert!(vlan_words(words).unwrap_err().contains("1 to 4094"), "{words}");
        }
        assert!(owner("x").unwrap_err().contains("INSTANCE/ID"));
        assert!(owner("I/x").is_err());
    }
}
