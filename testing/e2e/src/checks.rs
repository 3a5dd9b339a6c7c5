//! Which checks are there?

mod basic;
mod disks;
mod logs;
mod plan;
mod stop;

mod crash;
mod interrupted;

mod agents;
mod reboot;
mod upgrade;
mod witness;

mod causes;
mod page;
mod truth;

mod cycles;
mod stats;

mod bare;
mod escape;
mod guard;

mod flood;
mod privileges;

pub(crate) mod net;

mod bad_agents;
mod bad_guard;
mod bad_input;
mod bad_jobs;

use crate::harness::Beside::{Nothing, Others};
use crate::harness::{Check, check};
use crate::world::World;

/// Every check, those that take longest first.
pub(crate) const TABLE: &[Check<World>] = &[
    check("orphan_found_and_stopped", Others, agents::orphan),
    check("e2e_driver_healthy", Others, basic::driver_healthy),
    check("bad_input_line", Others, bad_input::line),
    check("bad_input_guard", Others, bad_guard::input),
    check("bad_input_truth", Others, truth::input),
    check("memory_exact", Others, guard::memory_exact),
    check("exit_causes_table", Others, causes::table),
    check("e2e_start_interrupted", Others, interrupted::start),
    check("e2e_agent_kill9", Others, crash::agent_kill9),
    check("e2e_agent_restart", Others, crash::agent_restart),
    check(
        "e2e_vm_dies_while_agent_down",
        Others,
        crash::vm_dies_while_agent_down,
    ),
    check("downgrade_refused", Others, upgrade::downgrade_refused),
    check("two_agents_one_host", Others, agents::two_on_one_host),
    check("host_reboot", Others, reboot::host_reboot),
    check("upgrade_previous_release", Others, upgrade::previous_release),
    check("upgrade_files_under_vm", Others, upgrade::files_under_vm),
    check("agent_dev_ctrl_c", Others, agents::dev_ctrl_c),
    check("e2e_plugin_kill9", Others, crash::plugin_kill9),
    check("page_list_inspect", Others, page::list_inspect),
    check("page_bundle", Others, page::bundle),
    check("stats_true", Others, stats::stats_true),
    check("e2e_stop_deadline", Others, stop::deadline),
    check("escape_table", Others, escape::table),
    check("qemu_is_bare", Others, bare::qemu_is_bare),
    check("oom_keeps_record", Others, guard::oom_keeps_record),
    check("shim_killed_vm_dies", Others, guard::shim_killed_vm_dies),
    check("plan_by_hand", Others, plan::by_hand),
    check("e2e_logs_live", Others, logs::live),
    check("e2e_console_flood", Others, flood::guest),
    check("e2e_config_typo", Others, basic::config_typo),
    check("e2e_disks", Others, disks::order),
    check("e2e_batch_exit", Others, stop::batch_exit),
    check("e2e_guest_poweroff", Others, stop::guest_poweroff),
    check("e2e_graceful_stop", Others, stop::graceful),
    check("pinned_cores", Nothing, guard::pinned_cores),
    check("console_flood", Nothing, flood::console_flood),
    check("unit_privileges", Nothing, privileges::unit_privileges),
    check("e2e_failed_start_is_fast", Nothing, basic::failed_start_is_fast),
    check("e2e_cycles", Nothing, cycles::cycles),
];
