//! How does the agent learn of the driver's health, at once and at each change?

use std::sync::Arc;
use std::time::Duration;

use nomad_proto::drivers::FingerprintResponse;
use nomad_proto::drivers::fingerprint_response::HealthState;
use nomad_proto::structs::Attribute;
use nomad_proto::structs::attribute::Value as Wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Driver;
use crate::host::fingerprint::{Fingerprint, Health, Value, VersionCache, look};
use crate::host::netd::View;

/// Pause between two looks at the host: what Nomad's own drivers take.
const INTERVAL: Duration = Duration::from_secs(30);

/// The stream, which ends only with the process: Nomad would call again at once.
pub(super) fn stream(driver: &Arc<Driver>) -> ReceiverStream<Result<FingerprintResponse, Status>> {
    let (sender, receiver) = mpsc::channel(1);
    let driver = Arc::clone(driver);
    drop(tokio::spawn(async move {
        let mut versions = VersionCache::default();
        let mut last = None;
        let stopped = driver.plugin.stopper.stopped();
        tokio::pin!(stopped);
        // Nomad keeps this stream as long as it is there at all.
        let _connected = driver.reaper.connected();
        let mut orphans = driver.reaper.orphans();
        let mut netd = driver.networks.view();
        loop {
            let (now, cache) = look_off_thread(&driver, versions).await;
            versions = cache;
            if last.as_ref() != Some(&now) {
                if sender.send(Ok(message(&now, last.as_ref()))).await.is_err() {
                    return;
                }
                last = Some(now);
            }
            tokio::select! {
                // Nothing is lost whichever comes first.
                () = &mut stopped => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(INTERVAL) => {}
                // The sender lives as long as the driver.
                _ = orphans.changed() => {}
                _ = netd.changed() => {}
            }
        }
    }));
    ReceiverStream::new(receiver)
}

async fn look_off_thread(driver: &Arc<Driver>, mut versions: VersionCache) -> (Fingerprint, VersionCache) {
    let unknown = |reason: &str| Fingerprint {
        health: Health::Undetected(reason.to_owned()),
        attributes: std::collections::BTreeMap::new(),
    };
    let Ok(instance) = driver.instance() else {
        return (unknown("the driver has not been configured yet"), versions);
    };
    let orphans = driver.reaper.orphans().borrow().clone();
    let netd = match instance.options.netd {
        Some(_) => driver.networks.first_view().await,
        None => View::default(),
    };
    let looked = tokio::task::spawn_blocking(move || {
        let now = look(&instance, &orphans, &netd, &mut versions);
        (now, versions)
    });
    looked.await.unwrap_or_else(|_| {
        (
            unknown("the driver failed inside, its log says where"),
            VersionCache::default(),
        )
    })
}

/// An attribute is taken away only by an empty text.
fn message(now: &Fingerprint, last: Option<&Fingerprint>) -> FingerprintResponse {
    let (health, description) = match &now.health {
        Health::Undetected(text) => (HealthState::Undetected, text),
        Health::Unhealthy(text) => (HealthState::Unhealthy, text),
        Health::Healthy(text) => (HealthState::Healthy, text),
    };
    let gone = last
        .into_iter()
        .flat_map(|last| last.attributes.keys())
        .filter(|name| !now.attributes.contains_key(*name));
    let gone = gone.map(|name| (name, Wire::StringVal(String::new())));
    let here = now.attributes.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => Wire::StringVal(text.clone()),
            Value::Bool(value) => Wire::BoolVal(*value),
            Value::Integer(value) => Wire::IntVal(*value),
        };
        (name, value)
    });
    let attributes = gone
        .chain(here)
        .map(|(name, value)| {
            (
                name.clone(),
                Attribute {
                    value: Some(value),
                    unit: String::new(),
                },
            )
        })
        .collect();
    FingerprintResponse {
        attributes,
        health: health.into(),
        health_description: description.clone(),
        err: String::new(),
    }
}
