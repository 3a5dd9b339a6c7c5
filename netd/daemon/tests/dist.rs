//! Does the commented configuration say what holds?

use std::collections::BTreeSet;
use std::path::Path;

use netd_plan::{Config, Settings};

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/netd.toml");
    std::fs::read_to_string(path).expect("dist/netd.toml is there")
}

fn parsed(text: String) -> (Config, Settings) {
    Config::parse(&[("netd.toml".to_owned(), text)]).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// With what stands behind a # without a space.
fn uncommented() -> String {
    let lines = shipped();
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn netd_toml_as_shipped_changes_nothing() {
    assert_eq!(parsed(shipped()), Config::embedded());
}

#[test]
fn netd_toml_says_the_defaults() {
    let (mut config, mut settings) = parsed(uncommented());
    let (embedded, defaults) = Config::embedded();
    // These two have no default that could be written: the file says what holds without them.
    assert_eq!(settings.metrics.take().as_deref(), Some("127.0.0.1:9470"));
    let default = config
        .networks
        .values_mut()
        .find(|network| network.name.as_str() == "default");
    let default = default.expect("the network default is shown");
    assert_eq!(default.mtu.take(), Some(1500));

    assert_eq!(settings, defaults);
    assert_eq!(config.link_group, embedded.link_group);
    assert_eq!(Some(&*default), embedded.networks.values().next());
}

#[test]
fn netd_toml_shows_every_kind() {
    let (config, _) = parsed(uncommented());
    let kinds: BTreeSet<&str> = config
        .networks
        .values()
        .map(|network| network.kind_name())
        .collect();
    assert_eq!(kinds, BTreeSet::from(["bridge", "nat", "vlan", "vlan-aware"]));
}
