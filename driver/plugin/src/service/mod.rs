//! What does Nomad's agent call, and what is it answered?
//!
//! Conversions only: what is done stands in `task`. One file per family of calls.

mod base;
mod events;
mod exec;
mod fingerprint;
mod order;
mod stats;
mod tasks;

#[cfg(test)]
mod cgroup2_tests;

use std::sync::{Arc, PoisonError, RwLock};

use go_plugin::{MAX_MESSAGE_BYTES, Plugin};
use nomad_proto::base::base_plugin_server::BasePluginServer;
use nomad_proto::drivers::driver_server::DriverServer;
use nomad_proto::rpc;
use nomad_proto::structs::RecoverableError;
use prost::Message;
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::instance::Instance;
use crate::task::Failure;
use crate::task::events::Events;
use crate::task::network::Networks;
use crate::task::reap::Reaper;
use crate::task::registry::Registry;

/// The driver as a whole: what outlives a single call.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) plugin: Plugin,
    pub(crate) tasks: Registry,
    pub(crate) events: Events,
    pub(crate) reaper: Reaper,
    pub(crate) networks: Networks,
    instance: RwLock<Option<Arc<Instance>>>,
}

/// The services of this plugin.
pub(crate) fn routes(plugin: &Plugin) -> Routes {
    let driver = Arc::new(Driver::new(plugin));
    let base = BasePluginServer::new(base::Service(Arc::clone(&driver)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let driver = DriverServer::new(tasks::Service(driver))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Routes::new(base).add_service(driver)
}

impl Driver {
    fn new(plugin: &Plugin) -> Self {
        Self {
            plugin: plugin.clone(),
            tasks: Registry::default(),
            events: Events::new(),
            reaper: Reaper::default(),
            networks: Networks::default(),
            instance: RwLock::new(None),
        }
    }

    /// The configured instance.
    pub(crate) fn instance(&self) -> Result<Arc<Instance>, Failure> {
        let instance = self
            .instance
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        instance.ok_or_else(|| Failure::Retryable("the driver has not been configured yet".to_owned()))
    }

    fn configure(&self, instance: Arc<Instance>) {
        *self.instance.write().unwrap_or_else(PoisonError::into_inner) = Some(instance);
    }
}

/// Type of Nomad's detail in an error's status.
const RECOVERABLE_ERROR_TYPE: &str =
    "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

/// An error as Nomad understands it: with a recoverable detail, the task's restart policy applies.
pub(crate) fn status(failure: Failure) -> Status {
    match failure {
        Failure::Denied(message) => {
            tracing::warn!(message, "refused");
            Status::invalid_argument(message)
        }
        Failure::Retryable(message) => {
            tracing::warn!(message, "failed, may be tried again");
            let detail = prost_types::Any {
                type_url: RECOVERABLE_ERROR_TYPE.to_owned(),
                value: RecoverableError { recoverable: true }.encode_to_vec(),
            };
            let details = rpc::Status {
                code: Code::FailedPrecondition.into(),
                message: message.clone(),
                details: vec![detail],
            };
            Status::with_details(Code::FailedPrecondition, message, details.encode_to_vec().into())
        }
    }
}

/// The text that Nomad's own code looks for (`drivers.ErrTaskNotFound`).
pub(crate) fn task_not_found() -> Status {
    Status::not_found("task not found for given id")
}

/// Nanoseconds since 1970 as a message.
pub(crate) fn timestamp(unix_ns: u64) -> prost_types::Timestamp {
    const NS: u64 = 1_000_000_000;
    prost_types::Timestamp {
        seconds: i64::try_from(unix_ns / NS).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ns % NS).unwrap_or(0),
    }
}

/// Go's zero time, which Nomad takes for "not yet".
pub(crate) fn zero_timestamp() -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: -62_135_596_800,
        nanos: 0,
    }
}
