//! What was this program told, in QEMU's words and in its own?

use serde_json::Value;

/// The part of QEMU's command line that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Number of the QMP socket.
    pub(crate) qmp: Option<i64>,
    /// Number of the console's socket.
    pub(crate) console: Option<i64>,
    /// Number of vCPUs.
    pub(crate) vcpus: usize,
    /// Descriptors of the disks, in order.
    pub(crate) disks: Vec<i64>,
    /// Descriptors of kernel and initrd.
    pub(crate) images: Vec<i64>,
    /// Descriptors of the queues of tap devices.
    pub(crate) taps: Vec<i64>,
    /// What the guest's kernel is told.
    pub(crate) words: Vec<String>,
}

/// What `key=` says in a list such as `socket,id=qmp,fd=3`.
fn part<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',')
        .find_map(|item| item.strip_prefix(key)?.strip_prefix('='))
}

impl Arguments {
    /// Options that are not known here are QEMU's, and left out with the value that follows them.
    pub(crate) fn read(arguments: &[String]) -> Self {
        let mut read = Self {
            vcpus: 1,
            ..Self::default()
        };
        for (name, value) in arguments.iter().zip(arguments.iter().skip(1)) {
            let number = |text: &str| text.parse::<i64>().ok();
            match name.as_str() {
                "-chardev" => {
                    let fd = part(value, "fd").and_then(number);
                    match part(value, "id") {
                        Some("qmp") => read.qmp = fd,
                        Some("console") => read.console = fd,
                        _ => {}
                    }
                }
                "-smp" => read.vcpus = value.parse().unwrap_or(1),
                "-netdev" => {
                    let netdev: Value = serde_json::from_str(value).unwrap_or_default();
                    let queues = netdev["fds"].as_str().unwrap_or_default();
                    read.taps.extend(queues.split(':').filter_map(number));
                }
                "-add-fd" => read.disks.extend(part(value, "fd").and_then(number)),
                "-kernel" | "-initrd" => {
                    let last = value.rsplit('/').next();
                    read.images.extend(last.and_then(number));
                }
                "-append" => read.words = value.split_whitespace().map(str::to_owned).collect(),
                _ => {}
            }
        }
        read
    }

    /// Every descriptor that the command line explains, besides 0, 1 and 2.
    pub(crate) fn descriptors(&self) -> Vec<i64> {
        let channels = self.qmp.iter().chain(&self.console);
        let files = self.disks.iter().chain(&self.images).chain(&self.taps);
        channels.chain(files).copied().collect()
    }
}

/// Something to do once the guest would run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Try to get out.
    Escape,
    /// Use so many MiB of memory.
    Hog(u64),
    /// Burn processor time on each vCPU.
    Busy,
    /// Write so many MiB to the console.
    Flood(u64),
    /// Make processes and threads.
    Fork,
    /// Write so many MiB to the first disk.
    Write(u64),
}

/// What the words ask for; the error names a word that can't be understood. Words of the escape's targets have a name of
/// two parts (`inmate.victim.pid=1`) and are not looked at.
pub(crate) fn acts(words: &[String]) -> Result<Vec<Act>, String> {
    let mut acts = Vec::new();
    for word in words {
        let Some(own) = word.strip_prefix("inmate.") else {
            continue;
        };
        let (name, value) = own.split_once('=').unwrap_or((own, ""));
        let amount = || {
            value
                .parse()
                .map_err(|_| format!("{word}: this needs a number of MiB"))
        };
        acts.push(match name {
            "escape" => Act::Escape,
            "hog" => Act::Hog(amount()?),
            "busy" => Act::Busy,
            "flood" => Act::Flood(amount()?),
            "fork" => Act::Fork,
            "write" => Act::Write(amount()?),
            _ if name.contains('.') => continue,
            _ => return Err(format!("{word} is not known here")),
        });
    }
    Ok(acts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn qemus_command_line_is_read() {
        let read = Arguments::read(&words(
            "-name|x,debug-threads=on|-S|-chardev|socket,id=qmp,fd=3|-mon|chardev=qmp,mode=control|\
             -chardev|socket,id=console,fd=4|-smp|3|-kernel|/proc/self/fd/5|-append|quiet inmate.busy|\
             -add-fd|fd=6,set=1|-add-fd|fd=7,set=2|\
             -netdev|{\"fds\":\"8:9\",\"id\":\"net0\",\"type\":\"tap\"}|-netdev|{\"id\":\"net1\",\"type\":\"user\"}",
        ));
        let expected = Arguments {
            qmp: Some(3),
            console: Some(4),
            vcpus: 3,
            disks: vec![6, 7],
            images: vec![5],
            taps: vec![8, 9],
            words: words("quiet|inmate.busy"),
        };
        assert_eq!(read, expected);
        assert_eq!(read.descriptors(), [3, 4, 6, 7, 5, 8, 9]);
    }

    #[test]
    fn words_become_acts() {
        let asked = words("quiet|inmate.hog=40|inmate.busy|inmate.victim.pid=3|inmate.flood=1");
        assert_eq!(acts(&asked), Ok(vec![Act::Hog(40), Act::Busy, Act::Flood(1)]));
        assert!(acts(&words("inmate.hgo=40")).is_err());
        assert!(acts(&words("inmate.hog=all")).is_err());
    }
}
