//! How are the commands used that look at a host?

/// The manual of `list`.
pub(super) const LIST: &str = "\
NAME
  nomad-driver-microvm list - every task of a state directory, and what becomes of it

SYNOPSIS
  nomad-driver-microvm list [--state-dir DIR] [--json]

DESCRIPTION
  Reads the records of a driver's state directory and asks the shims that live. Neither Nomad's agent
  nor the driver needs to run; nothing is locked and nothing is changed. A record that can't be read is
  a line too.

  -h, --help        print this text
  --json            print JSON instead of a table
  --state-dir DIR   the plugin option state_dir (default /var/lib/steppe/driver)

COLUMNS
  KEY     the first 8 characters of the allocation's id, as Nomad shows it
  TASK    the task's name
  JOB     the job's id
  STATE   see below
  ADDRESS the first address that netd gave it
  UID     the user id that QEMU runs as
  QEMU    QEMU's process id, while it runs
  SHIM    the process id of microvm-shim, which holds the VM, while it lives
  SINCE   when the state began (UTC)

  Below the table stands a sentence for each task with which something is not as it should be.

STATES
  starting           the start goes on: QEMU does not run its guest yet
  interrupted        the start was interrupted before the guest ran; the driver takes it back
  running            the guest runs
  running not ready  the guest runs and has not shown what the job's ready_pattern waits for
  shim silent        the shim lives but says nothing: whether the guest runs is not known
  ended CAUSE        the VM ended and Nomad has not yet asked for it to be taken away; --exit-causes
                     lists the causes
  being taken back   the VM was stopped; what was made for it is removed, or waits to be tried again
  other boot         the host was restarted since (or the record is another host's): nothing of it runs
  unreadable         the record is damaged, of a newer release or another instance: nothing is done
                     about this task until somebody looks after it

JSON
  { \"version\": 1, \"state_dir\": …, \"tasks\": [ … ] }, and each of the tasks has
    key, alloc_id, task, task_id, job, namespace     whose it is; the key is whole
    state, cause, since                              cause is null unless the state is \"ended\"
    uid, qemu_pid, shim_pid, directory
    interfaces       [ { network, kind, tap, queues, mac, ipv4, ipv4_gateway, ipv6, ipv6_gateway, dns, mtu,
                       vlan, trunk } ], from the record; a text is empty, and vlan 0, where there is none
    problem                                          the sentence, or null
  Every member is always there; what is not known is null. Times are RFC 3339, in UTC. Later releases
  may add members to version 1.

EXIT STATUS
  0   the table was printed, however the VMs are
  1   the state directory can't be read: it is missing, or you are not root
  64  the command line is wrong

EXAMPLES
  nomad-driver-microvm list
  nomad-driver-microvm list --json | jq -r '.tasks[] | select(.state == \"unreadable\") | .directory'

SEE ALSO
  nomad-driver-microvm inspect --help, nomad-driver-microvm bundle --help
";

/// The manual of `inspect`.
pub(super) const INSPECT: &str = "\
NAME
  nomad-driver-microvm inspect - all that is known of one task

SYNOPSIS
  nomad-driver-microvm inspect TASK [--state-dir DIR] [--json]

DESCRIPTION
  Shows whose a task is, its state, user ids, processes, memory limit, networks and times, each step that was
  written down for it, what of its undo failed, how it ended, and the launch plan. Nothing is locked and
  nothing is changed.

  TASK is the task's key (the name of its directory), the beginning of its key or of its allocation's
  id, or such a beginning, a slash and the task's name: b2f8c3d4, b2f8c3d4/vm. Where several fit, they
  are listed.

  -h, --help        print this text
  --json            print JSON instead of a text
  --state-dir DIR   the plugin option state_dir (default /var/lib/steppe/driver)

  The states are those of `list`. The number before a step is its line in the record. The last lines of
  the console and of QEMU's messages are written down when the VM ends; until then only `nomad alloc
  logs` has them. They are the guest's words: control characters are removed from the text, and escaped
  in the JSON.

  The launch plan has the job's whole kernel command line. For others to read, `bundle` leaves it out.

JSON
  { \"version\": 1, \"state_dir\": …, … } with all members that `list --json` has of a task, and
    record_version, instance, boot_id, this_boot
    created_at, started_at
    supervisor_uid, run_directory, control_groups, memory_limit_bytes
    steps           [ { line, at, step, details } ]
    undo_failures   [ { line, at, what, reason } ]
    end             { cause, sentence, exit_code, signal, oom_killed, at, qemu_status, qmp_reason,
                      asked, guest_started }, or null
    console_tail, qemu_messages
    plan            as in plan.json, with a version of its own
    plan_problem    why the plan can't be shown
  Every member is always there; what is not known is null. Times are RFC 3339, in UTC. Later releases
  may add members to version 1.

EXIT STATUS
  0   the task was shown
  1   no task or several tasks are called so, or the state directory can't be read
  64  the command line is wrong

EXAMPLES
  nomad-driver-microvm inspect b2f8c3d4
  nomad-driver-microvm inspect b2f8c3d4/vm --json | jq .end
";

/// The manual of `bundle`.
pub(super) const BUNDLE: &str = "\
NAME
  nomad-driver-microvm bundle - one archive about a task, for whoever helps you

SYNOPSIS
  nomad-driver-microvm bundle TASK [-o FILE] [--state-dir DIR]

DESCRIPTION
  Writes a tar archive about one task and prints its name. The file belongs to you alone (mode 0600),
  and a file that is there already is never overwritten. TASK is as for `inspect`. The task goes on
  untouched.

  -h, --help          print this text
  -o, --output FILE   the archive's name (default steppe-KEY.tar in the current directory)
  --state-dir DIR     the plugin option state_dir (default /var/lib/steppe/driver)

WHAT IS IN IT
  about.txt      versions of the driver, of QEMU and of the kernel, and what was left out
  inspect.txt    what `inspect` shows
  record         the task's record
  plan.json      the launch plan: QEMU's options, file names, forwarded ports
  exit.json      how QEMU ended
  console.tail   the console's last lines, at most 4 KiB
  stderr.tail    QEMU's last messages, at most 4 KiB
  plugin.log     the driver's last lines about this task, at most 256 KiB
  shim.log       the shim's last lines about this task, at most 256 KiB

WHAT IS LEFT OUT
  The job's part of the kernel command line: its length stands in its place. Where the words of that
  part, or pieces of their values, stand in console, messages or logs (a kernel prints its command
  line), they are replaced by \"(left out)\"; values of less than 6 bytes only together with their names.
  If the launch plan can't be read, console, messages and logs are left out altogether.
  Disks, memory and environment of the VM, and lines of the logs that do not name this task.

  CONSOLE LINES ARE THE GUEST'S WORDS. What else the guest printed there, secrets of its own included,
  is in the archive: read console.tail and plugin.log before you hand it on.

EXIT STATUS
  0   the archive was written
  1   it could not be written, is there already, or no one task is called so
  64  the command line is wrong

EXAMPLES
  nomad-driver-microvm bundle b2f8c3d4/vm
  nomad-driver-microvm bundle b2f8c3d4 -o /tmp/web.tar && tar -tf /tmp/web.tar
";
