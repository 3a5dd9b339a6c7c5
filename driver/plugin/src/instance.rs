//! What does a configured driver know about itself and its host?

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nomad_proto::base::ClientTopology;
use steppe_vm::spec::{Host, KnownNetwork};

use crate::config::{AcceleratorOption, Options};
use crate::host::isolation::{self, Able};
use crate::host::state_dir::{self, StateDir, StateError};
use crate::host::{kvm, tsc};

/// Largest size of the plugin's own log, and of the shims'.
const LOG_MAX_BYTES: u64 = 4 << 20;

/// One configured driver: from a SetConfig with Nomad's own configuration to the end of the process.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) options: Options,
    /// Sum of MHz and number of cores that Nomad reckons with.
    pub(crate) core_mhz: f64,
    state: Mutex<Option<Arc<StateDir>>>,
    kvm: OnceLock<Result<(), kvm::Unusable>>,
    tsc_khz: OnceLock<u32>,
    able: OnceLock<Able>,
}

impl Instance {
    pub(crate) fn new(options: Options, topology: Option<&ClientTopology>) -> Self {
        Self {
            options,
            core_mhz: core_mhz(topology),
            state: Mutex::new(None),
            kvm: OnceLock::new(),
            tsc_khz: OnceLock::new(),
            able: OnceLock::new(),
        }
    }

    /// Takes over what an earlier configuration of this process has locked: a second lock would find the first in its way.
    pub(crate) fn take_over(&self, earlier: &Self) {
        if earlier.options.state_dir == self.options.state_dir {
            let locked = earlier
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = locked;
        }
    }

    /// The locked state directory; locks it when it wasn't yet. Blocks for a moment.
    pub(crate) fn state(&self) -> Result<Arc<StateDir>, StateError> {
        // Nothing panics while it is held, and a half-set Option doesn't exist.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = &*state {
            return Ok(Arc::clone(state));
        }
        let opened = Arc::new(StateDir::open(&self.options.state_dir)?);
        *state = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Where this instance's log files are.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        state_dir::log_dir(&self.options.state_dir).join(name)
    }

    /// Sends the plugin's lines into its own log as well, from now on.
    pub(crate) fn log_to_file(&self, log: &go_plugin::LogSink) -> std::io::Result<()> {
        let path = self.log("plugin.log");
        state_dir::make_private(path.parent().unwrap_or(Path::new("/")))?;
        log.set_level(self.options.log_level);
        log.set_file(&path, LOG_MAX_BYTES)
    }

    /// Opens the shims' common log for appending; a full one is put aside first.
    pub(crate) fn shim_log(&self) -> std::io::Result<std::fs::File> {
        let path = self.log("shim.log");
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_MAX_BYTES) {
            std::fs::rename(&path, path.with_extension("log.1"))?;
        }
        std::fs::File::options().create(true).append(true).open(&path)
    }

    /// QEMU's absolute path, if it is installed.
    pub(crate) fn qemu(&self) -> Option<PathBuf> {
        let name = &self.options.qemu;
        if name.is_absolute() {
            return is_executable(name).then(|| name.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|path| path.is_absolute() && is_executable(path))
    }

    /// The shim's absolute path, if it is installed.
    pub(crate) fn shim(&self) -> Option<PathBuf> {
        let beside = || {
            std::env::current_exe()
                .ok()?
                .parent()
                .map(|directory| directory.join("microvm-shim"))
        };
        self.options
            .shim
            .clone()
            .or_else(beside)
            .filter(|path| is_executable(path))
    }

    /// Whether KVM can be used: proven once per process. Takes up to two seconds the first time.
    pub(crate) fn kvm(&self) -> Result<(), kvm::Unusable> {
        match self.options.accelerator {
            // Emulation was chosen: nothing needs proof.
            AcceleratorOption::Tcg => Err(kvm::Unusable::Open),
            AcceleratorOption::Auto | AcceleratorOption::Kvm => self.kvm.get_or_init(kvm::prove).clone(),
        }
    }

    /// What QEMU can be kept from on this host; `None` where the shim is missing or doesn't say. Takes some milliseconds the
    /// first time.
    pub(crate) fn able(&self) -> Option<Able> {
        if let Some(able) = self.able.get() {
            return Some(able.clone());
        }
        let looked = isolation::look(&self.shim()?);
        if let Err(error) = &looked {
            tracing::warn!(%error, "the shim does not say what its kernel can do");
        }
        let able = looked.ok()?;
        Some(self.able.get_or_init(|| able).clone())
    }

    /// Rate of the host's time stamp counter in kHz. Takes a tenth of a second the first time.
    pub(crate) fn tsc_khz(&self) -> u32 {
        *self.tsc_khz.get_or_init(tsc::khz)
    }

    /// What a task's request is checked against, with the networks that netd knows.
    pub(crate) fn offer(&self, networks: Vec<KnownNetwork>) -> Host {
        let kvm_unusable = match self.options.accelerator {
            AcceleratorOption::Tcg => Some("the plugin option accelerator is \"tcg\"".to_owned()),
            _ => self.kvm().err().map(|reason| reason.to_string()),
        };
        Host {
            kvm_unusable,
            tcg_allowed: self.options.accelerator != AcceleratorOption::Kvm,
            tsc_khz: self.tsc_khz(),
            user_network: self.options.user_network,
            workload_uids: self.options.workload_uids.clone(),
            networks: self.options.netd.is_some().then_some(networks),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Mean speed of a core as Nomad reckons it: what a whole core used for a second counts in MHz.
fn core_mhz(topology: Option<&ClientTopology>) -> f64 {
    let cores = topology
        .map(|topology| topology.cores.as_slice())
        .unwrap_or_default();
    // The order is that of Core.MHz in Nomad's client/lib/numalib.
    let speed = |core: &nomad_proto::base::ClientTopologyCore| {
        [core.base_speed, core.max_speed, core.guess_speed]
            .into_iter()
            .find(|mhz| *mhz > 0)
            .unwrap_or(0)
    };
    let total: u64 = cores.iter().map(speed).sum();
    let count = u32::try_from(cores.len()).unwrap_or(u32::MAX);
    let total = u32::try_from(total).unwrap_or(u32::MAX);
    if count == 0 {
        0.0
    } else {
        f64::from(total) / f64::from(count)
    }
}
