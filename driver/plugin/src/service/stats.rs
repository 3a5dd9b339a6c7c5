//! How does the agent learn what a VM uses?
//!
//! Nomad's message for it, `TaskResourceUsage`, has fields for processor time and memory and no others: what each disk and
//! each network card transfers, how much of the memory is the guest's and how large its balloon is can't be told this way.

use std::sync::Arc;
use std::time::Duration;

use nomad_proto::drivers::{
    CpuUsage, MemoryUsage, TaskResourceUsage, TaskStats, TaskStatsResponse, cpu_usage, memory_usage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Driver, timestamp};
use crate::host::stats::{Meter, Sample, Used};
use crate::host::{records, unix_ns};
use crate::task::{Failure, Task, blocking, undo};

/// Shortest pause between two samples: Nomad's default is a second.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest pause before the first: a rate needs two readings, and right after a start or a recovery nobody shall wait for it.
const FIRST_INTERVAL_MAX: Duration = Duration::from_millis(200);

/// The stream of a task's samples; it ends when the task does, or can't be measured any more. Nomad asks again then.
pub(super) fn stream(
    driver: &Arc<Driver>,
    task: Arc<Task>,
    interval: Duration,
) -> ReceiverStream<Result<TaskStatsResponse, Status>> {
    let (sender, receiver) = mpsc::channel(1);
    let core_mhz = driver.instance().map_or(0.0, |instance| instance.core_mhz);
    let stopped = driver.plugin.stopper.stopped();
    drop(tokio::spawn(async move {
        tokio::pin!(stopped);
        let interval = interval.max(INTERVAL_MIN);
        let Some(meter) = meter(&task).await else {
            return;
        };
        let Some(mut before) = meter.read() else {
            return;
        };
        let mut pause = interval.min(FIRST_INTERVAL_MAX);
        loop {
            tokio::select! {
                // Nothing is lost whichever comes first.
                () = &mut stopped => return,
                () = sender.closed() => return,
                _ = task.wait() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = interval;
            let Some(now) = meter.read() else {
                return;
            };
            let Some(sample) = Sample::between(&before, &now) else {
                continue;
            };
            before = now;
            let stats = TaskStats {
                id: task.header.task_id.clone(),
                timestamp: Some(timestamp(unix_ns())),
                ..stats(&sample, core_mhz)
            };
            if sender
                .send(Ok(TaskStatsResponse { stats: Some(stats) }))
                .await
                .is_err()
            {
                return;
            }
        }
    }));
    ReceiverStream::new(receiver)
}

/// Finds what is to be read of a task's VM; `None` if it has ended.
async fn meter(task: &Task) -> Option<Meter> {
    let qemu = task.qemu_pid()?;
    let undo = Arc::clone(&task.undo);
    let found = blocking(move || {
        let record = records::read(&undo.directory).map_err(|error| Failure::retryable(&error))?;
        let leaves = record.as_ref().map(|record| record.leaves()).unwrap_or_default();
        let shim = undo::holder(&undo.lock()).map(|shim| shim.as_raw_nonzero().get());
        Ok(shim.and_then(|shim| Meter::of(qemu, shim, leaves)))
    });
    match found.await {
        Ok(Some(meter)) => Some(meter),
        Ok(None) => {
            tracing::debug!(task = task.header.task_id, "there is nothing to measure");
            None
        }
        Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
            tracing::warn!(
                task = task.header.task_id,
                reason,
                "what the VM uses can't be measured"
            );
            None
        }
    }
}

/// A sample in Nomad's words: all processes together, and each by its id.
fn stats(sample: &Sample, core_mhz: f64) -> TaskStats {
    let each = sample.processes.iter();
    let user = each.clone().map(|used| used.user).sum();
    let system = each.clone().map(|used| used.system).sum();
    let sum = |figure: fn(&Used) -> u64| each.clone().map(figure).fold(0, u64::saturating_add);
    let mut cpu = cpu(user, system, core_mhz);
    if let Some(throttling) = &sample.throttling {
        cpu.throttled_periods = throttling.periods;
        cpu.throttled_time = throttling.time_ns;
        for field in [
            cpu_usage::Fields::ThrottledPeriods,
            cpu_usage::Fields::ThrottledTime,
        ] {
            cpu.measured_fields.push(field.into());
        }
    }
    let mut memory = MemoryUsage {
        rss: sum(|used| used.resident.rss_bytes),
        measured_fields: vec![memory_usage::Fields::Rss.into()],
        ..MemoryUsage::default()
    };
    let groups = sample.memory.unwrap_or_default();
    let figures = [
        (
            memory_usage::Fields::Usage,
            sample.memory.map(|groups| groups.usage),
            &mut memory.usage,
        ),
        (
            memory_usage::Fields::MaxUsage,
            groups.max_usage,
            &mut memory.max_usage,
        ),
        (memory_usage::Fields::Swap, groups.swap, &mut memory.swap),
        (memory_usage::Fields::Cache, groups.cache, &mut memory.cache),
        (
            memory_usage::Fields::KernelUsage,
            groups.kernel,
            &mut memory.kernel_usage,
        ),
        (
            memory_usage::Fields::KernelMaxUsage,
            groups.kernel_max,
            &mut memory.kernel_max_usage,
        ),
    ];
    for (field, figure, place) in figures {
        if let Some(bytes) = figure {
            *place = bytes;
            memory.measured_fields.push(field.into());
        }
    }
    TaskStats {
        agg_resource_usage: Some(TaskResourceUsage {
            cpu: Some(cpu),
            memory: Some(memory),
        }),
        resource_usage_by_pid: each
            .map(|used| (used.pid.to_string(), process(used, core_mhz)))
            .collect(),
        ..TaskStats::default()
    }
}

fn process(used: &Used, core_mhz: f64) -> TaskResourceUsage {
    TaskResourceUsage {
        cpu: Some(cpu(used.user, used.system, core_mhz)),
        memory: Some(MemoryUsage {
            rss: used.resident.rss_bytes,
            swap: used.resident.swap_bytes,
            measured_fields: [memory_usage::Fields::Rss, memory_usage::Fields::Swap]
                .map(i32::from)
                .to_vec(),
            ..MemoryUsage::default()
        }),
    }
}

fn cpu(user: f64, system: f64, core_mhz: f64) -> CpuUsage {
    CpuUsage {
        user_mode: user,
        system_mode: system,
        percent: user + system,
        total_ticks: (user + system) / 100.0 * core_mhz,
        // Not the ticks: they follow from the percentage, none of Nomad's own drivers names them, and its command line would
        // print the columns behind that name one place too far to the left.
        measured_fields: [
            cpu_usage::Fields::UserMode,
            cpu_usage::Fields::SystemMode,
            cpu_usage::Fields::Percent,
        ]
        .map(i32::from)
        .to_vec(),
        ..CpuUsage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::stats::{Memory, Resident, Throttling};

    fn used(pid: i32, user: f64, system: f64, rss_bytes: u64) -> Used {
        Used {
            pid,
            user,
            system,
            resident: Resident {
                rss_bytes,
                swap_bytes: 5,
            },
        }
    }

    fn bare() -> Sample {
        Sample {
            processes: vec![
                used(10, 80.0, 10.0, 1000),
                used(11, 0.0, 0.25, 20),
                used(12, 1.5, 0.25, 4),
            ],
            memory: None,
            throttling: None,
        }
    }

    fn names(usage: &TaskResourceUsage) -> Vec<String> {
        let cpu = usage.cpu.iter().flat_map(|cpu| cpu.measured_fields());
        let memory = usage.memory.iter().flat_map(|memory| memory.measured_fields());
        let cpu = cpu.map(|field| field.as_str_name().to_owned());
        cpu.chain(memory.map(|field| field.as_str_name().to_owned()))
            .collect()
    }

    #[test]
    fn the_whole_is_the_sum_of_its_processes() {
        let stats = stats(&bare(), 2000.0);
        let all = stats.agg_resource_usage.unwrap();
        let cpu = all.cpu.as_ref().unwrap();
        assert_eq!(
            (cpu.user_mode, cpu.system_mode, cpu.percent, cpu.total_ticks),
            (81.5, 10.5, 92.0, 1840.0)
        );
        assert_eq!(all.memory.as_ref().unwrap().rss, 1024);
        let each = stats.resource_usage_by_pid;
        assert_eq!(each.len(), 3);
        let watcher = &each["12"];
        assert_eq!(watcher.cpu.as_ref().unwrap().total_ticks, 35.0);
        assert_eq!(watcher.memory.as_ref().unwrap().rss, 4);
        assert_eq!(
            names(watcher),
            ["USER_MODE", "SYSTEM_MODE", "PERCENT", "RSS", "SWAP"]
        );
    }

    #[test]
    fn only_what_was_measured_is_named() {
        let all = stats(&bare(), 2000.0).agg_resource_usage.unwrap();
        assert_eq!(names(&all), ["USER_MODE", "SYSTEM_MODE", "PERCENT", "RSS"]);
        assert_eq!(all.memory.unwrap().swap, 0);
        let grouped = Sample {
            memory: Some(Memory {
                usage: 2048,
                max_usage: Some(4096),
                swap: Some(0),
                cache: None,
                kernel: Some(512),
                kernel_max: None,
            }),
            throttling: Some(Throttling {
                periods: 3,
                time_ns: 7,
            }),
            ..bare()
        };
        let all = stats(&grouped, 2000.0).agg_resource_usage.unwrap();
        let wanted = [
            "USER_MODE",
            "SYSTEM_MODE",
            "PERCENT",
            "THROTTLED_PERIODS",
            "THROTTLED_TIME",
            "RSS",
            "USAGE",
            "MAX_USAGE",
            "SWAP",
            "KERNEL_USAGE",
        ];
        assert_eq!(names(&all), wanted);
        let (cpu, memory) = (all.cpu.unwrap(), all.memory.unwrap());
        assert_eq!((cpu.throttled_periods, cpu.throttled_time), (3, 7));
        assert_eq!(
            (memory.usage, memory.max_usage, memory.kernel_usage, memory.cache),
            (2048, 4096, 512, 0)
        );
    }
}
