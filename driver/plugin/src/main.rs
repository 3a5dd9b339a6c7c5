//! How is the driver called?
//!
//! Nomad starts it as a plugin, without arguments; a person may look at the host's VMs, or ask for help and version.

mod config;
mod instance;
mod service;

mod task;

mod host;

mod page;

use std::io::Write;
use std::process::ExitCode;

const HELP: &str = "\
nomad-driver-microvm is a Nomad task driver: it runs QEMU microVMs. Nomad starts it; by hand it only answers

  nomad-driver-microvm list             every task of this host, and what becomes of it
  nomad-driver-microvm inspect TASK     all that is known of one task
  nomad-driver-microvm bundle TASK      one archive about a task, for whoever helps you
  nomad-driver-microvm --help | --version
  nomad-driver-microvm --options        the plugin options, and the keys of a task's config block
  nomad-driver-microvm --exit-causes    how a VM can end, and what Nomad is told of each end

INSTALL
  Put nomad-driver-microvm and microvm-shim side by side into the agent's plugin_dir, and into its configuration
      plugin \"nomad-driver-microvm\" { config { image_paths = [\"/var/lib/steppe/images\"] } }
  then restart the agent: `nomad node status -self -verbose` lists driver \"microvm\".
";

/// The handshake that Nomad's agent and its plugins share (`plugins/base/plugin.go` in Nomad's source).
const SERVE: go_plugin::ServeConfig = go_plugin::ServeConfig {
    name: "nomad-driver-microvm",
    usage: "put it into the Nomad agent's plugin_dir and name it in a plugin block, see --help",
    magic_cookie_key: "NOMAD_PLUGIN_MAGIC_COOKIE",
    magic_cookie_value: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
    app_protocol_version: 2,
};

fn main() -> ExitCode {
    if let Some(done) = page::run(std::env::args_os().skip(1)) {
        return done;
    }
    let words = std::env::args_os().skip(1);
    let arguments: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let text = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => return go_plugin::run(&SERVE, service::routes),
        ["--help" | "-h"] => HELP.to_owned(),
        ["--version" | "-V"] => concat!("nomad-driver-microvm ", env!("CARGO_PKG_VERSION"), "\n").to_owned(),
        ["--options"] => config::reference(),
        ["--exit-causes"] => steppe_vm::exit::reference(),
        [other, ..] => {
            drop(writeln!(
                std::io::stderr(),
                "nomad-driver-microvm: {other:?} is not known here: see --help"
            ));
            return ExitCode::from(64);
        }
    };
    // A reader that has gone needs no help.
    drop(std::io::stdout().write_all(text.as_bytes()));
    ExitCode::SUCCESS
}
