//! How are netd and its commands used?

/// What `netd --help` prints.
pub(super) const NETD: &str = "\
NAME
  netd - networks of virtual machines

SYNOPSIS
  netd COMMAND [OPTION]...
  netd --help | --version

DESCRIPTION
  Gives each virtual machine of a host its place on the network before it starts, and takes it back
  after it stopped. Programs that run machines ask it over a unix socket; what they get is a tap device
  that only their machine's user can open, filtered from its first moment on.

COMMANDS
  serve    be the daemon
  check    is the configuration right, can this host have its networks, what would a request do
  list     the interfaces and networks there are
  explain  addresses and names of a machine, from its identity alone
  purge    remove everything of netd's from this host

  Each has a manual: netd COMMAND --help

OPTIONS
  -h, --help       print this text
  -V, --version    print the release

FILES
  /etc/netd/netd.toml      the configuration; without it there is one network, `default`
  /etc/netd/conf.d/*.toml  more of it, by the order of their names
  /run/netd/netd.sock      where drivers ask
  A configuration with every key and its default is installed as /usr/local/share/doc/steppe/netd.toml.

EXIT STATUS
  0  done
  1  failed, or not all is well
  2  the command line is wrong
";

/// The manual of `serve`.
pub(super) const SERVE: &str = "\
NAME
  netd serve - be the daemon

SYNOPSIS
  netd serve [--config FILE] [--socket PATH]

DESCRIPTION
  Reads what is attached from the links themselves, repairs what differs, and serves until it is told to
  end. Machines lose no frame while it is away or restarted: links and filters stay. There is no other
  memory, and nothing to be backed up.

  It writes its log to standard error: one line per event, with the journal's levels where that is the
  journal. systemd hears when it is ready.

  --config FILE  instead of /etc/netd/netd.toml; drop-ins come from the folder conf.d beside it
  --socket PATH  instead of the configuration's
  -h, --help     print this text

SIGNALS
  SIGHUP           read the configuration again. Where something is wrong with it, the old one goes on
                   and the log says what. A new socket, or another link group, takes a restart.
  SIGTERM, SIGINT  end. Links stay.

PRIVILEGES
  CAP_NET_ADMIN for links, filters and their sysctls, CAP_NET_RAW to ask whether an address is taken. It
  needs no root, gives up whatever else it has, and can't gain more.

EXIT STATUS
  0  it was told to end
  1  it can't serve; the log says why
  2  the command line is wrong

EXAMPLES
  netd serve
  netd serve --config ./netd.toml --socket /tmp/netd.sock

SEE ALSO
  netd check --help
";

/// The manual of `check`.
pub(super) const CHECK: &str = "\
NAME
  netd check - is the configuration right, can this host have its networks, what would a request do

SYNOPSIS
  netd check [--config FILE] [--socket PATH] [--json]
  netd check --network NAME [--ipv4 ADDRESS] [--vlan N] [--trunk LIST] [--mtu N] [--port PORT]...
             [--network NAME ...]... [--identity TEXT] [--owner INSTANCE/ID] [--uid N] [--queues N]
             [--config FILE] [--socket PATH] [--json]

DESCRIPTION
  Without --network: reads the configuration and says everything that is wrong with it, each with file
  and line. If nothing is, it looks whether this host can have each network, and says why it can't and
  what helps. The daemon need not run. If it does, networks that it does not know as they are written
  are named too. Nothing is changed. What the kernel can do is known to root alone; others are told so.

  With --network: asks the daemon what it would answer if a machine with these interfaces were attached,
  and what it would do, step by step, or why it would refuse. Nothing is done. Whether another host has
  an address is not asked.

  --config FILE  instead of /etc/netd/netd.toml; drop-ins come from the folder conf.d beside it
  --socket PATH  instead of the configuration's
  --json         print JSON
  -h, --help     print this text

  Each --network begins an interface, and the options after it are that interface's:
  --network NAME        the network
  --ipv4 ADDRESS        an address, auto (the default where the network has IPv4), or none
  --vlan N              vlan-aware networks: the VLAN of an access port
  --trunk LIST          vlan-aware networks: VLANs of a trunk port, such as 100-120,200
  --mtu N               what the guest is told, up to the network's
  --port PORT           nat networks: PROTOCOL:HOST_IP:HOST_PORT:GUEST_PORT, such as tcp:192.0.2.1:8080:80
  For the machine:
  --identity TEXT       what its addresses are computed from (default check)
  --owner INSTANCE/ID   whose it is (default check/check)
  --uid N               the user who may open its taps (default 65534)
  --queues N            queues of each interface (default 1)

JSON
  Without --network: { \"version\": 1, \"files\": [ … ], \"problems\": [ { place, sentence } ],
    \"daemon\": { socket, answers, release, problem } or null,
    \"networks\": [ { name, kind, bridge, mtu, ipv4, ipv6, available, reason, actions, running } ] }
    reason says why a network is not available; actions is what netd does before it is there; running
    is whether the daemon knows it as it is written, or null where none answers.
  With --network: { \"version\": 1, \"interfaces\": [ … ], \"actions\": [ … ],
    \"refused\": { reason, field, sentence, retryable } or null }, interfaces as `netd list --json` has them.
  Every member is always there; what is not known is null. Later releases may add members to version 1.

EXIT STATUS
  0  the configuration is right and this host can have every network; or the request would be granted
  1  something is wrong, as printed
  2  the command line is wrong

EXAMPLES
  netd check
  netd check --json | jq -r '.networks[] | select(.available | not) | .reason'
  netd check --network default --port tcp:192.0.2.1:8080:80
  netd check --network trunk --trunk 200-219 --network default --ipv4 none
";

/// The manual of `list`.
pub(super) const LIST: &str = "\
NAME
  netd list - the interfaces and networks there are

SYNOPSIS
  netd list [--config FILE] [--socket PATH] [--json]

DESCRIPTION
  Asks the daemon. Below each table stands a sentence for whatever is not as it should be, and for each
  port of the host that leads to a machine.

  --config FILE  instead of /etc/netd/netd.toml, for the path of the socket
  --socket PATH  instead of the configuration's
  --json         print JSON instead of tables
  -h, --help     print this text

COLUMNS
  NETWORK  its name               HERE     whether this host can have it; if not, why stands below
  KIND     nat, bridge, vlan or vlan-aware
  USED     addresses of the pool that machines of this host have, and how many there are

  TAP      name of the tap device
  OWNER    the program that asked and its name for the machine
  NIC      position in the machine, from 0
  VLAN     of an access port, or those of a trunk port
  OPEN     whether a process holds it open: its machine runs

JSON
  { \"version\": 1,
    \"networks\": [ { name, kind, mtu, available, reason, ipv4, ipv6, pool, used } ],
    \"interfaces\": [ { instance, id, index, network, kind, tap, uid, queues, mac, ipv4, ipv4_gateway,
                      ipv6, ipv6_gateway, dns, mtu, vlan, trunk, carrier, faults,
                      ports: [ { protocol, host_ip, host_port, guest_port } ] } ] }
  Every member is always there; what does not apply is null. Later releases may add members to version 1.

EXIT STATUS
  0  listed
  1  the daemon does not answer, or you may not ask it (readers and drivers in [daemon] may, and root)
  2  the command line is wrong

EXAMPLES
  netd list
  netd list --json | jq -r '.interfaces[] | select(.network == \"tenant-a\") | .ipv4'
";

/// The manual of `explain`.
pub(super) const EXPLAIN: &str = "\
NAME
  netd explain - addresses and names of a machine, from its identity alone

SYNOPSIS
  netd explain IDENTITY [--network NAME] [--vlan N|trunk] [--owner INSTANCE/ID] [--config FILE] [--json]

DESCRIPTION
  Prints what a machine of this identity has on each network of the configuration: the same on every host
  with the same configuration, today and after every restart. No daemon is asked and nothing is looked at.

  Nomad's driver takes NAMESPACE/JOB/GROUP/TASK/INDEX for the identity, or, for a job that says
  identity = \"alloc\", ALLOCATION/TASK.

  IPv4 addresses are the first four that \"auto\" tries; the machine has the first of them that nobody
  else has.

  --network NAME        only this network
  --vlan N, trunk       of vlan-aware networks: the VLAN of an access port, or a trunk port. Default: the
                        network's vid, else a trunk port
  --owner INSTANCE/ID   also the names of the first interface's tap, which depend on the owner alone
  --config FILE         instead of /etc/netd/netd.toml; drop-ins come from the folder conf.d beside it
  --json                print JSON
  -h, --help            print this text

JSON
  { \"version\": 1, \"identity\": …, \"networks\": [ { network, kind, vlan, trunk, bridge, mac, link_local,
    ipv6, ipv4_candidates, tap, altname } ] }
  Every member is always there; what does not apply is null. Later releases may add members to version 1.

EXIT STATUS
  0  printed
  1  the configuration is wrong, or has no such network
  2  the command line is wrong, or the identity is none

EXAMPLES
  netd explain default/web/web/vm/0
  netd explain default/web/web/vm/0 --network tenant-a --json | jq -r '.networks[0].ipv6'
";

/// The manual of `purge`.
pub(super) const PURGE: &str = "\
NAME
  netd purge - remove everything of netd's from this host

SYNOPSIS
  netd purge [--force] [--config FILE] [--socket PATH]

DESCRIPTION
  Removes the taps, bridges and VLANs that netd made, and its filter, and says what it removed. What is
  somebody else's is left alone: a link is netd's only if both its name and its group say so. Where
  nothing is left, nothing is done. Sysctls stay as they are.

  The daemon must not run. Machines must not, either: where a process holds a tap open, nothing is
  removed, unless --force is given.

  --force        also where machines run: their traffic ends
  --config FILE  instead of /etc/netd/netd.toml, for the link group and the path of the socket
  --socket PATH  instead of the configuration's
  -h, --help     print this text

EXIT STATUS
  0  nothing of netd's is left
  1  something is, or netd or machines run
  2  the command line is wrong

EXAMPLES
  systemctl stop netd && netd purge
";
