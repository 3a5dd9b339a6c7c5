//! What of a launch plan may be a job's secret?
//!
//! Jobs put words on their guest's kernel command line, secrets among them. Everything else in a plan is names, numbers
//! and choices of the driver.

use steppe_vm::plan::LaunchPlan;

/// The option whose argument is the kernel command line.
const OPTION: &str = "-append";

/// The part of the kernel command line that is the job's; empty where there is none.
#[must_use]
pub fn cmdline(plan: &LaunchPlan) -> &str {
    values(plan).next().map_or("", |index| {
        let line = plan.arguments.get(index).map_or("", String::as_str);
        jobs_part(line)
    })
}

/// The plan with the job's part of the kernel command line replaced by its length.
#[must_use]
pub fn without_cmdline(plan: &LaunchPlan) -> LaunchPlan {
    let mut plan = plan.clone();
    let places: Vec<usize> = values(&plan).collect();
    for index in places {
        if let Some(line) = plan.arguments.get_mut(index) {
            let length = jobs_part(line).len();
            if length > 0 {
                line.truncate(line.len() - length);
                line.push_str(&format!("({length} bytes, left out)"));
            }
        }
    }
    plan
}

/// Places of the kernel command line among the arguments.
fn values(plan: &LaunchPlan) -> impl Iterator<Item = usize> {
    let options = plan.arguments.iter().enumerate();
    options.filter_map(|(index, argument)| (argument == OPTION).then_some(index + 1))
}

/// What follows the words that the driver begins the line with, or began it with in an earlier release. A first word
/// that isn't known is the job's.
fn jobs_part(line: &str) -> &str {
    let is_drivers = |word: &str| {
        matches!(word, "console=ttyS0" | "reboot=t" | "panic=-1" | "tsc=reliable")
            || word
                .strip_prefix("tsc_early_khz=")
                .is_some_and(|khz| !khz.is_empty() && khz.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut rest = line;
    loop {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        if !is_drivers(word) {
            return rest;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use steppe_vm::spec::{Allocated, Host, Spec, check};

    use super::*;

    /// The plan of a job with that command line, from the driver's own check on.
    fn plan_of(cmdline: &str, tcg: bool) -> LaunchPlan {
        let spec = Spec {
            kernel: "vmlinux".into(),
            cmdline: Some(cmdline.into()),
            ..Spec::default()
        };
        let allocated = Allocated {
            memory_mib: 128,
            ..Allocated::default()
        };
        let host = Host {
            kvm_unusable: tcg.then(|| "no".to_owned()),
            tcg_allowed: tcg,
            tsc_khz: 2_500_000,
            user_network: true,
            workload_uids: 1..=2,
            networks: None,
        };
        let vm = check(&spec, &allocated, &host).unwrap().vm;
        let site = crate::Site {
            owner: "a.vm".into(),
            key: "a.0".into(),
            program: "/usr/bin/qemu-system-x86_64".into(),
            uid: 1,
            gid: 1,
            isolation: None,
            file_bytes: None,
            interfaces: &[],
            archive: None,
            place: &|_| "/images".into(),
        };
        crate::render(&vm, &site)
    }

    const SECRET: &str = "token=\"a b\"  password=geheim tsc=reliable";

    #[test]
    fn the_jobs_part_and_nothing_else_is_left_out() {
        for tcg in [false, true] {
            let plan = plan_of(SECRET, tcg);
            assert_eq!(cmdline(&plan), SECRET, "tcg {tcg}");
            let without = without_cmdline(&plan);
            let text = without.to_json() + &without.to_string();
            assert!(!text.contains("geheim") && !text.contains("token"), "{text}");
            let length = format!("({} bytes, left out)", SECRET.len());
            assert!(text.contains("panic=-1") && text.contains(&length), "{text}");
            assert_eq!(without.arguments.len(), plan.arguments.len());
            let differing = without.arguments.iter().zip(&plan.arguments);
            assert_eq!(differing.filter(|(a, b)| a != b).count(), 1);
        }
    }

    #[test]
    fn nothing_of_the_jobs_is_nothing_to_leave_out() {
        let plan = plan_of("", true);
        assert_eq!(cmdline(&plan), "");
        assert_eq!(without_cmdline(&plan), plan);
    }

    #[test]
    fn words_that_are_not_known_are_the_jobs() {
        assert_eq!(jobs_part("console=ttyS0 tsc_early_khz=x"), "tsc_early_khz=x");
        assert_eq!(jobs_part("noapic console=ttyS0"), "noapic console=ttyS0");
        assert_eq!(jobs_part(" console=ttyS0"), " console=ttyS0");
        assert_eq!(jobs_part(""), "");
    }
}
