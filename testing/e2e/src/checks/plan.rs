//! Is the launch plan what was done, and can it be done again by hand?

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::job::{Order, READY};
use crate::wait::seconds;
use crate::world::World;
use crate::{host, process, scratch};

/// How long the guest may take when it is started by hand.
const BOOT_LIMIT: std::time::Duration = seconds(90);

pub(super) fn by_hand(world: &World) {
    let job = world.run(&Order::with_http("plan", "steppe.exit=3 steppe.after=2"));
    let _running = job.wait_running();
    let qemu = job.qemu(&world.main);
    let vm = job.vms(&world.main).pop().expect("it has a VM");
    let plan = world
        .main
        .state_dir()
        .join("tasks")
        .join(&vm.key)
        .join("plan.json");
    let text = std::fs::read(&plan).unwrap_or_else(|error| panic!("{}: {error}", plan.display()));

    let parsed: Value = serde_json::from_slice(&text).expect("the plan is JSON");
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut planned = vec![word(&parsed["program"])];
    planned.extend(parsed["arguments"].as_array().into_iter().flatten().map(word));
    let real = process::one(qemu).expect("QEMU runs").arguments;
    assert_eq!(real, planned, "QEMU's arguments are not the plan's");

    let kept = world.scratch.path().join("by-hand.json");
    std::fs::write(&kept, &text).expect("a file can be written in the scratch folder");
    let _ended = job.wait_terminal();
    assert!(job.vms(&world.main).is_empty(), "its VM is still there");

    let mut shim = Command::new(world.shim())
        .arg("run")
        .arg(&kept)
        .env(scratch::MARK, world.scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shim can be started");
    let console = shim.stdout.take().expect("it is piped");
    let mut messages = shim.stderr.take().expect("it is piped");
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let _unheard = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
        }
    });
    let deadline = std::time::Instant::now() + BOOT_LIMIT;
    let mut seen = Vec::new();
    while !seen.iter().any(|line| line == READY) {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => seen.push(line),
            Err(_) => break,
        }
    }
    let is_ready = seen.iter().any(|line| line == READY);
    if !is_ready {
        drop(shim.kill());
    }
    let status = shim.wait().expect("it is our child");
    drop(reader.join());
    let mut said = String::new();
    let _length = messages.read_to_string(&mut said);
    assert!(is_ready, "not ready by hand: console {seen:?}, messages {said:?}");
    // The guest's own exit code is the command's.
    assert_eq!(status.code(), Some(3), "messages {said:?}");
    assert!(
        host::vms(&world.main)
            .iter()
            .all(|vm| !vm.key.starts_with(&job.allocation))
    );
}
