//! How do the driver's calls become what is done to tasks?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nomad_proto::drivers as wire;
use nomad_proto::drivers::driver_server::Driver as Rpc;
use steppe_vm::interface::Advertised;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Driver, events, exec, fingerprint, order, stats, status, task_not_found, timestamp, zero_timestamp,
};
use crate::config;
use crate::task::recover::{self, HANDLE_VERSION};
use crate::task::start::Started;
use crate::task::{Ended, Task, Waiting, start, stop};

pub(super) struct Service(pub(super) Arc<Driver>);

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    fn task(&self, id: &str) -> Result<Arc<Task>, Status> {
        self.0.tasks.get(id).ok_or_else(task_not_found)
    }
}

#[tonic::async_trait]
impl Rpc for Service {
    async fn init(&self, _: Request<wire::InitRequest>) -> Answer<wire::InitResponse> {
        Ok(Response::new(wire::InitResponse {}))
    }

    async fn task_config_schema(
        &self,
        _: Request<wire::TaskConfigSchemaRequest>,
    ) -> Answer<wire::TaskConfigSchemaResponse> {
        Ok(Response::new(wire::TaskConfigSchemaResponse {
            spec: Some(config::task_schema()),
        }))
    }

    async fn capabilities(
        &self,
        _: Request<wire::CapabilitiesRequest>,
    ) -> Answer<wire::CapabilitiesResponse> {
        let capabilities = wire::DriverCapabilities {
            send_signals: false,
            exec: false,
            // The guest sees nothing of the host's file system; paths in its environment are /local, /alloc, /secrets.
            fs_isolation: wire::driver_capabilities::FsIsolation::Image.into(),
            network_isolation_modes: vec![wire::network_isolation_spec::NetworkIsolationMode::Host.into()],
            must_create_network: false,
            mount_configs: wire::driver_capabilities::MountConfigs::NoMounts.into(),
            disable_log_collection: false,
            // QEMU runs as a user of its task's own in any case; where Nomad has one to give, as that.
            dynamic_workload_users: true,
        };
        Ok(Response::new(wire::CapabilitiesResponse {
            capabilities: Some(capabilities),
        }))
    }

    type FingerprintStream = ReceiverStream<Result<wire::FingerprintResponse, Status>>;

    async fn fingerprint(&self, _: Request<wire::FingerprintRequest>) -> Answer<Self::FingerprintStream> {
        Ok(Response::new(fingerprint::stream(&self.0)))
    }

    async fn recover_task(
        &self,
        request: Request<wire::RecoverTaskRequest>,
    ) -> Answer<wire::RecoverTaskResponse> {
        let handle = request.into_inner().handle.unwrap_or_default();
        let id = handle.config.unwrap_or_default().id;
        recover::recover(&self.0, &id, handle.version, &handle.driver_state)
            .await
            .map_err(status)?;
        Ok(Response::new(wire::RecoverTaskResponse {}))
    }

    async fn start_task(&self, request: Request<wire::StartTaskRequest>) -> Answer<wire::StartTaskResponse> {
        let config = request.into_inner().task.unwrap_or_default();
        // A start isn't given up half-way because the agent has gone: it runs to its end in a task of its own.
        let order = order::order(&config);
        let driver = Arc::clone(&self.0);
        let started = tokio::spawn(async move { start::start(&driver, order).await }).await;
        let Started { task, advertised } = started
            .map_err(|_| Status::internal("the driver failed inside, its log says where"))?
            .map_err(status)?;
        let handle = wire::TaskHandle {
            version: HANDLE_VERSION,
            config: Some(config),
            state: wire::TaskState::Running.into(),
            driver_state: recover::driver_state(&task),
        };
        Ok(Response::new(wire::StartTaskResponse {
            result: wire::start_task_response::Result::Success.into(),
            driver_error_msg: String::new(),
            handle: Some(handle),
            network_override: advertised.map(network_override),
        }))
    }

    async fn wait_task(&self, request: Request<wire::WaitTaskRequest>) -> Answer<wire::WaitTaskResponse> {
        let task = self.task(&request.into_inner().task_id)?;
        let _waiting = Waiting::on(&task);
        let _connected = self.0.reaper.connected();
        let stopped = self.0.plugin.stopper.stopped();
        tokio::select! {
            // Nothing is lost: the end stays known to the task.
            ended = task.wait() => {
                task.say_end(&self.0.events, &ended);
                // Nomad's own words for it, as its drivers for containers say them.
                let err = if ended.outcome.oom_killed { "OOM Killed".to_owned() } else { String::new() };
                Ok(Response::new(wire::WaitTaskResponse { result: Some(exit_result(Some(&ended))), err }))
            }
            () = stopped => Err(Status::unavailable("the plugin is ending, the VM goes on")),
        }
    }

    async fn stop_task(&self, request: Request<wire::StopTaskRequest>) -> Answer<wire::StopTaskResponse> {
        let request = request.into_inner();
        // Nomad repeats a stop that failed for minutes: a task that nobody knows is stopped.
        if let Some(task) = self.0.tasks.get(&request.task_id) {
            stop::stop(&task, duration(request.timeout), &request.signal)
                .await
                .map_err(status)?;
        }
        Ok(Response::new(wire::StopTaskResponse {}))
    }

    async fn destroy_task(
        &self,
        request: Request<wire::DestroyTaskRequest>,
    ) -> Answer<wire::DestroyTaskResponse> {
        let request = request.into_inner();
        if let Some(task) = self.0.tasks.get(&request.task_id)
            && task.ended().is_none()
            && !request.force
        {
            return Err(Status::failed_precondition(
                "the VM is running: stop it first, or destroy it with force",
            ));
        }
        let driver = Arc::clone(&self.0);
        let destroyed = tokio::spawn(async move { stop::destroy(&driver, &request.task_id).await }).await;
        destroyed
            .map_err(|_| Status::internal("the driver failed inside, its log says where"))?
            .map_err(status)?;
        Ok(Response::new(wire::DestroyTaskResponse {}))
    }

    async fn inspect_task(
        &self,
        request: Request<wire::InspectTaskRequest>,
    ) -> Answer<wire::InspectTaskResponse> {
        let task = self.task(&request.into_inner().task_id)?;
        let ended = task.ended();
        let state = if ended.is_some() {
            wire::TaskState::Exited
        } else {
            wire::TaskState::Running
        };
        let pid = task
            .qemu_pid()
            .map(|pid| ("qemu_pid".to_owned(), pid.to_string()));
        Ok(Response::new(wire::InspectTaskResponse {
            task: Some(wire::TaskStatus {
                id: task.header.task_id.clone(),
                name: task.header.task_name.clone(),
                state: state.into(),
                started_at: Some(timestamp(task.started_at_unix_ns)),
                // A clock that was set back must not make a task end before it began.
                completed_at: Some(ended.as_ref().map_or_else(zero_timestamp, |ended| {
                    timestamp(ended.at_unix_ns.max(task.started_at_unix_ns))
                })),
                result: Some(exit_result(ended.as_ref())),
            }),
            driver: Some(wire::TaskDriverStatus {
                attributes: pid.into_iter().collect::<HashMap<_, _>>(),
            }),
            network_override: None,
        }))
    }

    type TaskStatsStream = ReceiverStream<Result<wire::TaskStatsResponse, Status>>;

    async fn task_stats(&self, request: Request<wire::TaskStatsRequest>) -> Answer<Self::TaskStatsStream> {
        let request = request.into_inner();
        let task = self.task(&request.task_id)?;
        Ok(Response::new(stats::stream(
            &self.0,
            task,
            duration(request.collection_interval),
        )))
    }

    type TaskEventsStream = ReceiverStream<Result<wire::DriverTaskEvent, Status>>;

    async fn task_events(&self, _: Request<wire::TaskEventsRequest>) -> Answer<Self::TaskEventsStream> {
        Ok(Response::new(events::stream(&self.0)))
    }

    /// VMs outlive the plugin: there is nothing to shut down.
    async fn shutdown(&self, _: Request<wire::ShutdownRequest>) -> Answer<wire::ShutdownResponse> {
        Ok(Response::new(wire::ShutdownResponse {}))
    }

    async fn signal_task(
        &self,
        request: Request<wire::SignalTaskRequest>,
    ) -> Answer<wire::SignalTaskResponse> {
        let request = request.into_inner();
        let _task = self.task(&request.task_id)?;
        Err(exec::no_signal(&request.signal))
    }

    async fn exec_task(&self, request: Request<wire::ExecTaskRequest>) -> Answer<wire::ExecTaskResponse> {
        let _task = self.task(&request.into_inner().task_id)?;
        Err(exec::no_exec())
    }

    type ExecTaskStreamingStream = ReceiverStream<Result<wire::ExecTaskStreamingResponse, Status>>;

    async fn exec_task_streaming(
        &self,
        _: Request<Streaming<wire::ExecTaskStreamingRequest>>,
    ) -> Answer<Self::ExecTaskStreamingStream> {
        Err(exec::no_exec())
    }

    async fn create_network(
        &self,
        _: Request<wire::CreateNetworkRequest>,
    ) -> Answer<wire::CreateNetworkResponse> {
        Err(Status::unimplemented(
            "this driver makes no network for an allocation",
        ))
    }

    async fn destroy_network(
        &self,
        _: Request<wire::DestroyNetworkRequest>,
    ) -> Answer<wire::DestroyNetworkResponse> {
        Err(Status::unimplemented(
            "this driver makes no network for an allocation",
        ))
    }
}

/// What Nomad keeps of a VM's address for as long as the task lives.
fn network_override(advertised: Advertised) -> wire::NetworkOverride {
    wire::NetworkOverride {
        port_map: advertised
            .ports
            .into_iter()
            .map(|(label, port)| (label, port.into()))
            .collect(),
        addr: advertised.address,
        auto_advertise: advertised.by_default,
    }
}

/// Nomad's duration; a negative one is none.
fn duration(duration: Option<prost_types::Duration>) -> Duration {
    duration
        .and_then(|duration| Duration::try_from(duration).ok())
        .unwrap_or_default()
}

fn exit_result(ended: Option<&Ended>) -> wire::ExitResult {
    ended.map_or_else(wire::ExitResult::default, |ended| wire::ExitResult {
        exit_code: ended.outcome.exit_code,
        signal: ended.outcome.signal,
        oom_killed: ended.outcome.oom_killed,
    })
}
