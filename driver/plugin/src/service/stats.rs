//! How does the agent learn what a VM uses?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nomad_proto::drivers::{
    CpuUsage, MemoryUsage, TaskResourceUsage, TaskStats, TaskStatsResponse, cpu_usage, memory_usage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Driver, timestamp};
use crate::host::stats::{self, Usage};
use crate::host::unix_ns;
use crate::task::Task;

/// Shortest pause between two samples: Nomad's default is a second.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The stream of a task's samples; it ends when the task does.
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
        let mut last: Option<(Instant, Usage)> = None;
        while let Some(usage) = task.qemu_pid().and_then(stats::read) {
            let now = Instant::now();
            // Without an earlier sample there is no rate: the first says 0, not the whole past.
            let sample = sample(
                &task,
                usage,
                last.map(|(at, before)| (now.duration_since(at), before)),
                core_mhz,
            );
            if sender
                .send(Ok(TaskStatsResponse { stats: Some(sample) }))
                .await
                .is_err()
            {
                return;
            }
            last = Some((now, usage));
            tokio::select! {
                // Nothing is lost whichever comes first.
                () = &mut stopped => return,
                () = sender.closed() => return,
                _ = task.wait() => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }));
    ReceiverStream::new(receiver)
}

fn sample(task: &Task, usage: Usage, before: Option<(Duration, Usage)>, core_mhz: f64) -> TaskStats {
    let percent = |ticks: fn(&Usage) -> u64| {
        let Some((elapsed, before)) = &before else {
            return 0.0;
        };
        let ticks = u32::try_from(ticks(&usage).saturating_sub(ticks(before))).unwrap_or(u32::MAX);
        let per_second = u32::try_from(stats::ticks_per_second()).unwrap_or(100);
        f64::from(ticks) / f64::from(per_second) / elapsed.as_secs_f64().max(1e-3) * 100.0
    };
    let (user, system) = (
        percent(|usage| usage.user_ticks),
        percent(|usage| usage.system_ticks),
    );
    let usage = TaskResourceUsage {
        cpu: Some(CpuUsage {
            user_mode: user,
            system_mode: system,
            percent: user + system,
            total_ticks: (user + system) / 100.0 * core_mhz,
            measured_fields: [
                cpu_usage::Fields::UserMode,
                cpu_usage::Fields::SystemMode,
                cpu_usage::Fields::Percent,
                cpu_usage::Fields::TotalTicks,
            ]
            .map(i32::from)
            .to_vec(),
            ..CpuUsage::default()
        }),
        memory: Some(MemoryUsage {
            rss: usage.rss_bytes,
            measured_fields: vec![memory_usage::Fields::Rss.into()],
            ..MemoryUsage::default()
        }),
    };
    TaskStats {
        id: task.header.task_id.clone(),
        timestamp: Some(timestamp(unix_ns())),
        agg_resource_usage: Some(usage),
        resource_usage_by_pid: HashMap::new(),
    }
}
