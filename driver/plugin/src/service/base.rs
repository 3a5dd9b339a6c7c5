//! How does the agent learn what this plugin is, and tell it its configuration?

use std::sync::Arc;

use nomad_proto::base::base_plugin_server::BasePlugin;
use nomad_proto::base::{
    ConfigSchemaRequest, ConfigSchemaResponse, PluginInfoRequest, PluginInfoResponse, PluginType,
    SetConfigRequest, SetConfigResponse,
};
use tonic::{Request, Response, Status};

use super::Driver;
use crate::config;
use crate::host::chain;
use crate::instance::Instance;
use crate::task::{network, reap};

/// Name of the driver in job files.
pub(crate) const NAME: &str = "microvm";

/// The plugin API that Nomad has spoken since 0.9.
const API_VERSION: &str = "v0.1.0";

pub(super) struct Service(pub(super) Arc<Driver>);

#[tonic::async_trait]
impl BasePlugin for Service {
    async fn plugin_info(
        &self,
        _: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        Ok(Response::new(PluginInfoResponse {
            r#type: PluginType::Driver.into(),
            plugin_api_versions: vec![API_VERSION.to_owned()],
            plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
            name: NAME.to_owned(),
        }))
    }

    async fn config_schema(
        &self,
        _: Request<ConfigSchemaRequest>,
    ) -> Result<Response<ConfigSchemaResponse>, Status> {
        Ok(Response::new(ConfigSchemaResponse {
            spec: Some(config::options_schema()),
        }))
    }

    /// Called three times at an agent's start; only the last has Nomad's own configuration and any effect.
    async fn set_config(
        &self,
        request: Request<SetConfigRequest>,
    ) -> Result<Response<SetConfigResponse>, Status> {
        let request = request.into_inner();
        let options = match config::options(&request.msgpack_config) {
            Ok(options) => options,
            Err(error) => {
                // The agent forgets a plugin whose configuration was refused; it would stay for ever.
                self.0.plugin.stopper.stop();
                return Err(Status::invalid_argument(chain(&error)));
            }
        };
        let Some(nomad) = request.nomad_config else {
            return Ok(Response::new(SetConfigResponse {}));
        };
        let topology = nomad.driver.and_then(|driver| driver.topology);
        let instance = Arc::new(Instance::new(options, topology.as_ref()));
        if let Ok(earlier) = self.0.instance() {
            instance.take_over(&earlier);
        }
        if instance.options.enabled {
            if let Err(error) = instance.log_to_file(&self.0.plugin.log) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the plugin's own log can't be written"
                );
            }
            if let Err(error) = instance.state() {
                tracing::error!(error = &error as &dyn std::error::Error, "the driver can't work");
            }
            // Proofs and measurements take a moment: they are under way before anybody asks for them.
            let early = Arc::clone(&instance);
            drop(tokio::task::spawn_blocking(move || drop(early.offer(Vec::new()))));
        }
        let enabled = instance.options.enabled;
        self.0.configure(instance);
        if enabled {
            reap::begin(&self.0);
            network::begin(&self.0);
        }
        Ok(Response::new(SetConfigResponse {}))
    }
}
