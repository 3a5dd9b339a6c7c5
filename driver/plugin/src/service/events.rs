//! How do the events of all tasks reach the agent?

use std::sync::Arc;

use nomad_proto::drivers::DriverTaskEvent;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Driver;

/// The stream, which ends only with the process.
pub(super) fn stream(driver: &Arc<Driver>) -> ReceiverStream<Result<DriverTaskEvent, Status>> {
    let (sender, receiver) = mpsc::channel(1);
    let (before, mut later) = driver.events.listen();
    let stopped = driver.plugin.stopper.stopped();
    let connected = driver.reaper.connected();
    drop(tokio::spawn(async move {
        let _connected = connected;
        tokio::pin!(stopped);
        for event in before {
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        loop {
            tokio::select! {
                // Cancel safe: an event is taken whole or stays in the channel.
                event = later.recv() => match event {
                    Ok(event) => {
                        if sender.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    // A reader that fell behind lost the oldest, which Nomad would not have kept either.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = &mut stopped => return,
                () = sender.closed() => return,
            }
        }
    }));
    ReceiverStream::new(receiver)
}
