//! Which services does every plugin offer, whatever it is for?

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::Stopper;
use crate::proto::grpc_broker_server::{GrpcBroker, GrpcBrokerServer};
use crate::proto::grpc_controller_server::{GrpcController, GrpcControllerServer};
use crate::proto::grpc_stdio_server::{GrpcStdio, GrpcStdioServer};
use crate::proto::{ConnInfo, Empty, StdioData};

/// The name under which a host asks for the plugin's health.
const HEALTH_SERVICE: &str = "plugin";

/// The product's services and go-plugin's own, on one connection.
pub(crate) async fn add_to(routes: Routes, stopper: &Stopper) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status(HEALTH_SERVICE, tonic_health::ServingStatus::Serving)
        .await;
    routes
        .add_service(health)
        .add_service(GrpcControllerServer::new(Controller {
            stopper: stopper.clone(),
        }))
        .add_service(GrpcBrokerServer::new(Broker {
            stopper: stopper.clone(),
        }))
        .add_service(GrpcStdioServer::new(Stdio {
            stopper: stopper.clone(),
        }))
}

/// Ends the process when the host asks.
#[derive(Debug)]
struct Controller {
    stopper: Stopper,
}

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        tracing::debug!("shutdown asked for by the host");
        self.stopper.stop();
        Ok(Response::new(Empty {}))
    }
}

/// Keeps the host's stream open and offers no connections: nothing here is brokered.
#[derive(Debug)]
struct Broker {
    stopper: Stopper,
}

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = Silence<ConnInfo>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Silence<ConnInfo>>, Status> {
        let stopped = self.stopper.stopped();
        let mut offers = request.into_inner();
        Ok(Response::new(Silence::until(async move {
            // Reads on, so that the host's side never stalls. Either arm may be dropped: both only wait.
            let host_done = async { while let Some(Ok(_)) = offers.next().await {} };
            tokio::select! {
                () = stopped => {}
                () = host_done => {}
            }
        })))
    }
}

/// Keeps the host's stream open and sends nothing: a plugin of this crate prints nothing.
#[derive(Debug)]
struct Stdio {
    stopper: Stopper,
}

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = Silence<StdioData>;

    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Silence<StdioData>>, Status> {
        Ok(Response::new(Silence::until(self.stopper.stopped())))
    }
}

/// A stream that says nothing and ends with a future.
struct Silence<T> {
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    says: PhantomData<fn() -> T>,
}

impl<T> Silence<T> {
    fn until(end: impl Future<Output = ()> + Send + 'static) -> Silence<T> {
        Silence {
            end: Box::pin(end),
            says: PhantomData,
        }
    }
}

impl<T> Stream for Silence<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.end.as_mut().poll(context).map(|()| None)
    }
}
