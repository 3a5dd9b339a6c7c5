//! Are command lines understood, and do the manuals say what there is?

use steppe_proto::net::{Nic, Port, Protocol};

use super::*;

fn parsed(words: &[&str]) -> Result<Parsed, String> {
    parse(words.iter().map(OsString::from).collect()).map_err(|error| {
        assert!(matches!(error, CliError::Usage(..)), "{error:?}");
        error.to_string()
    })
}

fn arguments(words: &[&str]) -> Arguments {
    match parsed(words) {
        Ok(Parsed::Command(arguments)) => *arguments,
        other => panic!("{other:?}"),
    }
}

#[test]
fn command_lines_are_understood() {
    assert_eq!(arguments(&["serve"]), Arguments::of(Command::Serve));
    let wanted = Arguments {
        config: Some("/c".into()),
        socket: Some("/s".into()),
        json: true,
        ..Arguments::of(Command::List)
    };
    assert_eq!(
        arguments(&["list", "--json", "--config=/c", "--socket", "/s"]),
        wanted
    );
    let wanted = Arguments {
        identity: Some("--json".to_owned()),
        network: Some("a".to_owned()),
        vlan: Some("trunk".to_owned()),
        owner: Some("i/x".to_owned()),
        ..Arguments::of(Command::Explain)
    };
    let words = [
        "explain",
        "--network",
        "a",
        "--vlan",
        "trunk",
        "--owner=i/x",
        "--",
        "--json",
    ];
    assert_eq!(arguments(&words), wanted);
    let wanted = Arguments {
        force: true,
        ..Arguments::of(Command::Purge)
    };
    assert_eq!(arguments(&["purge", "--force"]), wanted);
}

#[test]
fn a_request_is_described_interface_by_interface() {
    let words = "check --identity a/b --uid 7 --network one --ipv4 none --port udp:192.0.2.1:53:53 --network two --vlan 5 \
                 --trunk 100-120,200 --trunk 300 --mtu 1400 --queues 2";
    let words: Vec<&str> = words.split_whitespace().collect();
    let arguments = arguments(&words);
    assert_eq!(arguments.identity.as_deref(), Some("a/b"));
    let mut wanted = check::Wanted::default();
    for (option, value) in [
        ("uid", "7"),
        ("network", "one"),
        ("ipv4", "none"),
        ("port", "udp:192.0.2.1:53:53"),
        ("network", "two"),
        ("vlan", "5"),
        ("trunk", "100-120,200,300"),
        ("mtu", "1400"),
        ("queues", "2"),
    ] {
        wanted.take(option, value).unwrap();
    }
    assert_eq!(arguments.request, wanted);
    let one = Nic {
        network: "one".to_owned(),
        ipv4: "none".to_owned(),
        ports: vec![Port {
            protocol: Protocol::Udp.into(),
            host_ip: "192.0.2.1".to_owned(),
            host_port: 53,
            guest_port: 53,
        }],
        ..Nic::default()
    };
    let two = Nic {
        network: "two".to_owned(),
        vlan: 5,
        trunk: ["100-120", "200", "300"].map(str::to_owned).to_vec(),
        mtu: 1400,
        ..Nic::default()
    };
    assert_eq!(wanted.nics(), [one, two]);
}

#[test]
fn wrong_command_lines_are_refused_with_a_sentence() {
    for (words, wanted) in [
        ([].as_slice(), "a command is missing: see netd --help"),
        (
            &["attach"],
            "\"attach\" is none of the commands serve, check, list",
        ),
        (&["--json"], "--json"),
        (&["serve", "--json"], "--json"),
        (&["serve", "x"], "\"x\": see netd serve --help"),
        (&["list", "--config"], "--config"),
        (&["list", "--force"], "--force"),
        (&["explain"], "explain needs an identity"),
        (&["explain", "a", "b"], "\"b\""),
        (&["check", "--ipv4", "none"], "--ipv4 stands before any --network"),
        (&["check", "--identity", "x"], "--identity goes with --network"),
        (&["check", "--owner", "x"], "--owner goes with --network"),
        (
            &["check", "--network", "a", "--vlan", "many"],
            "--vlan \"many\" is no number",
        ),
        (
            &["check", "--network", "a", "--port", "80"],
            "is not of the form tcp:192.0.2.1:8080:80",
        ),
        (
            &["check", "--network", "a", "--port", "sctp:1:2:3"],
            "is not of the form",
        ),
    ] {
        let error = parsed(words).unwrap_err();
        assert!(
            error.contains(wanted) && error.contains("--help") && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn the_manuals_say_what_there_is() {
    for (words, text) in [(["-h"], help::NETD), (["--help"], help::NETD)] {
        assert_eq!(parsed(&words), Ok(Parsed::Text(text)));
    }
    for command in Command::ALL {
        let help = command.help();
        assert_eq!(parsed(&[command.name(), "--help"]), Ok(Parsed::Text(help)));
        for wanted in [
            format!("  netd {}", command.name()),
            "EXIT STATUS".to_owned(),
            "EXAMPLES".to_owned(),
            "--config FILE".to_owned(),
            settings::FILE.to_owned(),
        ] {
            assert!(help.contains(&wanted), "{wanted}: {help}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 112), "{help}");
        assert!(help::NETD.contains(&format!("  {} ", command.name())));
    }
    for option in check::Wanted::OPTIONS {
        assert!(help::CHECK.contains(&format!("  --{option} ")), "{option}");
    }
}
