//! What does the smallest plugin look like?
//!
//! It has no services of its own. The tests start it; words in its environment make it misbehave on purpose.

use std::process::ExitCode;
use std::time::Duration;

use go_plugin::{Plugin, ServeConfig};
use tonic::service::Routes;

const CONFIG: ServeConfig = ServeConfig {
    name: "sample-plugin",
    usage: "Run this crate's tests instead.",
    magic_cookie_key: "SAMPLE_COOKIE",
    magic_cookie_value: "oats",
    app_protocol_version: 7,
};

fn main() -> ExitCode {
    go_plugin::run(&CONFIG, routes)
}

fn routes(plugin: &Plugin) -> Routes {
    if let Some(path) = std::env::var_os("SAMPLE_LOG_FILE") {
        plugin
            .log
            .set_file(path.as_ref(), 1 << 20)
            .expect("the test names a file that can be made");
    }
    if std::env::var_os("SAMPLE_CHATTY").is_some() {
        std::thread::spawn(|| {
            for n in 0_u64.. {
                tracing::info!(n, filler = "x".repeat(6000), "still here");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    if std::env::var_os("SAMPLE_PANIC").is_some() {
        drop(
            std::thread::Builder::new()
                .name("unlucky".into())
                .spawn(|| panic!("out of oats")),
        );
    }
    if std::env::var_os("SAMPLE_STOP").is_some() {
        let stopper = plugin.stopper.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            stopper.stop();
        });
    }
    Routes::default()
}
