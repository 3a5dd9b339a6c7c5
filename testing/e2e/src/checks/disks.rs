//! Does the guest find its disks in the job's order, by their names, and are they as read-only as the job says?

use serde_json::json;

use super::stop::terminated;
use crate::job::Order;
use crate::world::{IMAGES, World};

/// Two disks, the first one to be written: with one, a wrong order could not be seen.
pub(super) fn order(world: &World) {
    let images = world.scratch.path().join(IMAGES);
    let mut files = Vec::new();
    for (name, sectors) in [("first.raw", 64), ("second.raw", 128)] {
        let path = images.join(name);
        // Text, because it goes through one of Nomad's templates.
        std::fs::write(&path, " ".repeat(sectors * 512))
            .expect("a file can be written in the scratch folder");
        files.push((path.display().to_string(), format!("local/{name}")));
    }
    let mut order = Order::guest("disks", "steppe.disk steppe.poweroff").set(
        "disk",
        json!([
            { "name": "first", "file": "local/first.raw", "format": "raw" },
            { "name": "second", "file": "local/second.raw", "format": "raw", "read_only": true },
        ]),
    );
    order.files = files;
    let job = world.run(&order);
    let ended = job.wait_terminal();
    assert_eq!(terminated(&ended).exit_code, 0, "{}", ended.story());
    let console = job.console();
    for line in [
        "disk vda serial 'first' bytes 32768",
        "disk vdb serial 'second' bytes 65536",
        "disk wrote 'steppe-disk 1'",
    ] {
        assert!(console.contains(line), "{line:?} is not in:\n{console}");
    }
}
