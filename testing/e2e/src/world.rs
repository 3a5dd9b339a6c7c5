//! What do the checks share: the programs, the scratch folder, the server and its clients?

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::agent::{Client, PLUGIN, Server, Setup};
use crate::api::Api;
use crate::job::{Job, Order};
use crate::scratch::Scratch;

/// Fields are dropped in order: the client ends before the server, both before the scratch folder is swept.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) main: Client,
    server: Server,
    pub(crate) api: Api,
    nomad: PathBuf,
    pub(crate) guest: PathBuf,
    pub(crate) scratch: Scratch,
    /// Counts what needs a name of its own.
    numbers: AtomicU32,
}

/// Names of files that the bad-input jobs ask for by name are looked up here, after the guest's folder.
pub(crate) const IMAGES: &str = "images";

impl World {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "root is needed to run Nomad's client with QEMU as other users: run it with sudo"
        );
        let nomad = required("STEPPE_NOMAD", "");
        let plugins = required("STEPPE_PLUGIN_DIR", PLUGIN);
        let guest = required("STEPPE_GUEST_DIR", "vmlinux");
        let scratch = Scratch::new();
        // A folder of its own: what runs from it is known to be ours.
        let own = scratch.path().join("plugins");
        std::fs::create_dir(&own).expect("a folder can be made in the scratch folder");
        for program in [PLUGIN, "microvm-shim"] {
            let copied = std::fs::copy(plugins.join(program), own.join(program));
            copied.unwrap_or_else(|error| panic!("{}: {program}: {error}", plugins.display()));
        }
        std::fs::create_dir(scratch.path().join(IMAGES)).expect("a folder can be made in the scratch folder");
        let server = Server::start(&nomad, scratch.path());
        let main = Client::new(&Setup {
            nomad: &nomad,
            scratch: scratch.path(),
            server: &server,
            name: "main",
            options: &options(&guest, scratch.path()),
        });
        let world = Self {
            api: server.api(),
            main,
            server,
            nomad,
            guest,
            scratch,
            numbers: AtomicU32::new(0),
        };
        world.main.agent.start();
        world.main.wait_healthy(&world.api);
        world
    }

    /// A client of a check's own, ready, with the options of the shared one.
    pub(crate) fn own_client(&self, name: &str) -> Client {
        let client = self.client(name, &options(&self.guest, self.scratch.path()));
        client.agent.start();
        client.wait_healthy(&self.api);
        client
    }

    /// Another client, not started yet. `DIRECTORY` stands for its folder in the options.
    pub(crate) fn client(&self, name: &str, options: &str) -> Client {
        let setup = Setup {
            nomad: &self.nomad,
            scratch: self.scratch.path(),
            server: &self.server,
            name,
            options,
        };
        Client::new(&setup)
    }

    /// A name that no other client of the run has.
    pub(crate) fn name(&self, word: &str) -> String {
        format!("{word}{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands in a job and waits for its allocation.
    pub(crate) fn run<'w>(&'w self, order: &Order) -> Job<'w> {
        Job::run(&self.api, order, self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands in a job that will get no allocation.
    pub(crate) fn hand_in<'w>(&'w self, order: &Order) -> Job<'w> {
        Job::hand_in(&self.api, order, self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// The shim, to be run by hand.
    pub(crate) fn shim(&self) -> PathBuf {
        self.scratch.path().join("plugins/microvm-shim")
    }
}

/// What the operator of our clients allows.
fn options(guest: &Path, scratch: &Path) -> String {
    format!(
        r#"
    state_dir    = "DIRECTORY/state"
    run_dir      = "DIRECTORY/run"
    image_paths  = ["{}", "{}"]
    user_network = true
    log_level    = "debug"
"#,
        guest.display(),
        scratch.join(IMAGES).display()
    )
}

/// A path from the environment, in which a file is looked for.
fn required(variable: &str, file: &str) -> PathBuf {
    let value = std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run this through testing/prepare.sh, see --help"));
    let path = PathBuf::from(value);
    assert!(
        path.is_absolute(),
        "{variable} = {} is not an absolute path",
        path.display()
    );
    let there = if file.is_empty() {
        path.clone()
    } else {
        path.join(file)
    };
    assert!(there.exists(), "{variable}: {} does not exist", there.display());
    path
}
