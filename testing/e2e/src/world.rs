//! What do the checks share: the programs, the scratch folder, the server and its client?

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::agent::{Client, PLUGIN, Place, Server, Setup};
use crate::api::Api;
use crate::host::SHIM;
use crate::job::{Job, Order};
use crate::scratch::Scratch;

/// What every suite has: the server, the programs, the scratch folder.
///
/// Fields are dropped in order: the server before the scratch folder is swept, and before both whatever has this.
#[derive(Debug)]
pub(crate) struct Shared {
    server: Server,
    pub(crate) api: Api,
    nomad: PathBuf,
    pub(crate) guest: PathBuf,
    pub(crate) scratch: Scratch,
    /// Counts what needs a name of its own.
    numbers: AtomicU32,
}

/// The same with one client that its checks share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) main: Client,
    shared: Shared,
}

impl Deref for World {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// The scratch folder's folder for today's plugin and shim.
const PLUGINS: &str = "plugins";

/// Names of files that the bad-input jobs ask for by name are looked up here, after the guest's folder.
pub(crate) const IMAGES: &str = "images";

/// The stub guest's kernel there.
pub(crate) const STUB: &str = "stub";

impl World {
    pub(crate) fn new() -> Self {
        let shared = Shared::new("e2e", Ipv4Addr::LOCALHOST);
        let main = shared.own_client("main");
        Self { main, shared }
    }
}

impl Shared {
    /// For a suite; the server is reached at this address of ours.
    pub(crate) fn new(suite: &'static str, address: Ipv4Addr) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "root is needed to run Nomad's client with QEMU as other users: run it with sudo"
        );
        let nomad = required("STEPPE_NOMAD", "");
        let plugins = required("STEPPE_PLUGIN_DIR", PLUGIN);
        let guest = required("STEPPE_GUEST_DIR", "vmlinux");
        let scratch = Scratch::new(suite);
        // A folder of its own: what runs from it is known to be ours.
        place(&plugins, &scratch.path().join(PLUGINS));
        std::fs::create_dir(scratch.path().join(IMAGES)).expect("a folder can be made in the scratch folder");
        replace(&stub(), &scratch.path().join(IMAGES).join(STUB));
        let server = Server::start(&nomad, scratch.path(), address);
        Self {
            api: server.api(),
            server,
            nomad,
            guest,
            scratch,
            numbers: AtomicU32::new(0),
        }
    }

    /// A client of a check's own, ready, with the options of the shared one.
    pub(crate) fn own_client(&self, name: &str) -> Client {
        let client = self.client(name, &self.options());
        client.agent.start();
        client.wait_healthy(&self.api);
        client
    }

    /// The options of the shared client.
    pub(crate) fn options(&self) -> String {
        options(&self.guest, self.scratch.path())
    }

    /// Another client, not started yet. `DIRECTORY` stands for its folder in the options.
    pub(crate) fn client(&self, name: &str, options: &str) -> Client {
        self.client_with(name, options, |_| {})
    }

    /// Another client that differs from the others by more than its options.
    pub(crate) fn client_with(
        &self,
        name: &str,
        options: &str,
        change: impl FnOnce(&mut Setup<'_>),
    ) -> Client {
        let mut setup = Setup {
            nomad: &self.nomad,
            scratch: self.scratch.path(),
            server: &self.server,
            name,
            options,
            plugins: self.plugins(),
            run_dir: None,
            dev: false,
            place: Place::here(),
        };
        change(&mut setup);
        Client::new(&setup)
    }

    /// A number that nothing else of the run has.
    pub(crate) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The folder of today's plugin and shim.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.scratch.path().join(PLUGINS)
    }

    /// A name that no other client of the run has.
    pub(crate) fn name(&self, word: &str) -> String {
        format!("{word}{}", self.number())
    }

    /// Hands in a job and waits for its allocation.
    pub(crate) fn run<'w>(&'w self, order: &Order) -> Job<'w> {
        Job::run(&self.api, order, self.number())
    }

    /// Hands in a job that will get no allocation.
    pub(crate) fn hand_in<'w>(&'w self, order: &Order) -> Job<'w> {
        Job::hand_in(&self.api, order, self.number())
    }

    /// The shim, to be run by hand.
    pub(crate) fn shim(&self) -> PathBuf {
        self.plugins().join(SHIM)
    }
}

/// Puts the plugin and the shim from one folder into another as a package manager does: whole or not at all, each as a new
/// file of that name, while the old one may be running.
pub(crate) fn place(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made in the scratch folder");
    for program in [PLUGIN, SHIM] {
        replace(&from.join(program), &to.join(program));
    }
}

/// The same for one program.
pub(crate) fn replace(from: &Path, to: &Path) {
    let part = to.with_extension("part");
    let renamed = std::fs::copy(from, &part).and_then(|_| std::fs::rename(&part, to));
    renamed.unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
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

/// The stub guest's kernel, which is assembled in no time.
fn stub() -> PathBuf {
    let directory = std::env::var("STEPPE_STUB_DIR").unwrap_or_else(|_| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/stub/build.sh");
        let made = Command::new(&script).stderr(Stdio::inherit()).output();
        let made = made.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        assert!(made.status.success(), "{}: {}", script.display(), made.status);
        String::from_utf8_lossy(&made.stdout).trim().to_owned()
    });
    Path::new(&directory).join(STUB)
}

/// A path from the environment, in which a file is looked for.
pub(crate) fn required(variable: &str, file: &str) -> PathBuf {
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
