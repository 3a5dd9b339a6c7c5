package conformance

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/cgroupslib"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/base/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

const (
	matrixWorkers = 12
	// What a call may take to reach a point: a machine that does not quit is waited for, and the host is busy.
	pointLimit = 30 * time.Second
	// What a VM may take to be gone: its shim holds the logs for their reader up to 5 s.
	deathLimit = 10 * time.Second
	// What the host may take to be as before after the last call, which has waited for that. Less than the reaper's interval.
	cleanLimit = 5 * time.Second
	// The same where nobody asks any more, and the reaper has to find what is left. After half a minute netd does, too.
	reapLimit = 20 * time.Second
)

var (
	allVictims = []string{"plugin", "monitor", "supervisor", "QEMU", "all"}
	// Where the agent's next question is what matters, the plugin must be gone.
	pluginVictims = []string{"plugin", "all"}
)

// A path is a call of Nomad's that passes crash points, with what comes before and after it.
type crashPath struct {
	name    string
	victims []string
	// Each has a point before and one after.
	steps []string
	// What an agent does up to the call.
	prepare func(*crashCase)
	call    func(*crashCase) error
	// What Nomad's task runner does with the answer (client/allocrunner/taskrunner). Returns what came of it.
	after func(*crashCase, error) string
	// Nobody asks any more: the plugin's option orphan_grace, after which it looks for what is left.
	grace string
	words string // for the guest
}

// The only list of the points: one that is not here must not be reached, and one that is here must be.
var crashPaths = []crashPath{
	{
		name: "start", victims: allVictims, steps: slices.Concat(startSteps, shimStartSteps),
		call: (*crashCase).start, after: (*crashCase).afterStart,
	},
	{
		name: "start, never asked for again", victims: pluginVictims, steps: slices.Concat(startSteps, shimStartSteps),
		call: (*crashCase).start, after: (*crashCase).afterNothing, grace: "1s",
	},
	{
		name: "start that fails", victims: allVictims, steps: undoSteps,
		prepare: (*crashCase).occupyPort, call: (*crashCase).start, after: (*crashCase).afterFailure,
	},
	{
		name: "start over a running VM", victims: allVictims, steps: undoSteps,
		prepare: (*crashCase).forget, call: (*crashCase).start, after: (*crashCase).afterStart,
	},
	{
		name: "recover", victims: allVictims, steps: recoverSteps,
		prepare: (*crashCase).restart, call: (*crashCase).recover, after: (*crashCase).afterRecover,
	},
	{
		name: "recover after the VM's end", victims: pluginVictims, steps: recoverSteps,
		prepare: (*crashCase).restartLate, call: (*crashCase).recover, after: (*crashCase).afterRecover,
	},
	{
		name: "stop", victims: allVictims, steps: []string{"stop.power-button", "shim.exit-record", "shim.end"},
		prepare: (*crashCase).run, call: (*crashCase).stop, after: (*crashCase).afterStop,
	},
	{
		name: "stop of a deaf guest", victims: allVictims, steps: []string{"stop.quit"}, words: "stub.ignore-poweroff",
		prepare: (*crashCase).run, call: (*crashCase).stop, after: (*crashCase).afterStop,
	},
	{
		name: "stop of a stuck QEMU", victims: allVictims, steps: []string{"stop.kill"},
		prepare: (*crashCase).freeze, call: (*crashCase).stop, after: (*crashCase).afterStop,
	},
	{
		name: "destroy", victims: allVictims, steps: undoSteps,
		prepare: (*crashCase).end, call: (*crashCase).destroy, after: (*crashCase).afterDestroy, grace: "3s",
	},
	{
		name: "destroy without control groups", victims: pluginVictims, steps: []string{"undo.wait-uids"},
		prepare: (*crashCase).endWithoutGroups, call: (*crashCase).destroy, after: (*crashCase).afterDestroy, grace: "3s",
	},
}

var (
	startSteps = []string{
		"start.record", "start.uids", "start.run-directory", "start.network", "start.cgroups", "start.plan", "start.shim",
		"start.prepared", "start.running", "start.continue", "start.answer",
	}
	shimStartSteps = []string{"shim.cgroups", "shim.listen", "shim.supervisor", "shim.execute"}
	undoSteps      = []string{
		"undo.named", "undo.end-shim", "undo.kill-cgroups", "undo.remove-cgroups", "undo.detach-network",
		"undo.remove-run-directory", "undo.release-uids", "undo.remove-record",
	}
	recoverSteps = []string{"recover.read", "recover.connect", "recover.adopt"}
)

// crashCase is one point and one victim, with a plugin, directories and a task of its own.
type crashCase struct {
	t      *testing.T
	path   crashPath
	netd   *netd
	plugin *plugin
	vm     *vm
	handle *drivers.TaskHandle
	before traces
	// A process of the virtual machine was killed, and none was started since.
	hit bool
	// The plugin was killed.
	dead bool
}

// TestCrashMatrix stops each path at each of its points, kills each victim there, does what Nomad does then, and looks at
// the host.
func TestCrashMatrix(t *testing.T) {
	_ = pointsDir(t)
	initCgroups(t)
	must.True(t, os.Getuid() == 0 && cgroupslib.GetMode() != cgroupslib.OFF, must.Sprint("needs root and control groups"))
	netd := startNetd(t)
	stops := listenForPoints(t)

	type job struct {
		path  crashPath
		point string
	}
	var queue []job
	cells := map[string]map[string]string{} // row → victim → outcome
	var rows []string
	known := map[string]bool{}
	for _, path := range crashPaths {
		for _, step := range path.steps {
			for _, when := range []string{".before", ".after"} {
				known[step+when] = true
				queue = append(queue, job{path, step + when})
				row := path.name + "\t" + step + when
				rows, cells[row] = append(rows, row), map[string]string{}
			}
		}
	}

	began := time.Now()
	var lock sync.Mutex
	var group sync.WaitGroup
	jobs := make(chan job)
	for range matrixWorkers {
		group.Go(func() {
			for one := range jobs {
				absent := map[string]bool{}
				for _, victim := range one.path.victims {
					outcome := "-"
					if !absent[victim] {
						outcome = "not asked for" // by -test.run
						t.Run(strings.ReplaceAll(one.path.name, " ", "-")+"/"+one.point+"/"+victim, func(t *testing.T) {
							outcome = "FAILED"
							outcome = crash(t, stops, netd, one.path, one.point, victim, absent)
						})
					}
					lock.Lock()
					cells[one.path.name+"\t"+one.point][victim] = outcome
					lock.Unlock()
				}
			}
		})
	}
	for _, one := range queue {
		jobs <- one
	}
	close(jobs)
	group.Wait()

	counts := map[string]int{}
	last := ""
	for _, row := range rows {
		path, point, _ := strings.Cut(row, "\t")
		if path != last {
			t.Logf("%-36s%-18s%-18s%-18s%-18s%s", path, "plugin", "monitor", "supervisor", "QEMU", "all")
			last = path
		}
		line := fmt.Sprintf("  %-34s", point)
		for _, victim := range allVictims {
			outcome := cells[row][victim]
			switch outcome {
			case "": // not a victim of this path
			case "-":
				counts["without that victim (-)"]++
			case "FAILED", "not asked for":
				counts[outcome]++
			default:
				counts["held"]++
			}
			line += fmt.Sprintf("%-18s", outcome)
		}
		t.Log(strings.TrimRight(line, " "))
	}
	t.Log("started: started again, ran, was stopped and destroyed; found: ran on, was stopped and destroyed; ended: " +
		"ended, was destroyed; refused: the start failed; gone: nobody asked, or had to ask; reaped: nobody asked any more, " +
		"and the plugin took it back; each time the host was as before. -: there was no such process.")
	t.Logf("%d points, %v, %.0f s", len(known), counts, time.Since(began).Seconds())
	for _, point := range stops.reached() {
		if !known[point] {
			t.Errorf("point %s was reached, and is in no path of this table", point)
		}
		delete(known, point)
	}
	for _, point := range names(known) {
		t.Errorf("point %s was never reached", point)
	}
	must.GreaterEq(t, 40, len(rows))
	must.Len(t, 0, taps(t))
	netd.end()
	noneLeft(t, killLimit)
}

func pointsDir(t *testing.T) string {
	t.Helper()
	return programs(t, "STEPPE_POINTS_PLUGIN_DIR", "the directory of both programs, built with the feature crash-points")
}

// crash does one case. Victims that are not there at this point go into absent.
func crash(
	t *testing.T, stops *stops, netd *netd, path crashPath, point, victim string, absent map[string]bool,
) string {
	options := with(stubOptions(t), "netd", netd.socket)
	if path.grace != "" {
		options = with(options, "orphan_grace", path.grace)
	}
	c := &crashCase{t: t, path: path, netd: netd, plugin: startPluginWith(t, pointsDir(t), options)}
	c.attend()
	// All are of one job, group and task.
	config := stub(path.words) + "\nidentity = \"alloc\"\nnetwork {\n name = \"default\"\n}"
	if path.name == "start that fails" {
		config += "\nnetwork {\n name = \"user\"\n ports = [\"http\"]\n}"
	}
	c.vm = newVM(c.plugin, "vm", config)
	t.Cleanup(func() {
		if t.Failed() {
			found := c.traces()
			for _, one := range slices.Concat(found.monitors, found.supervisors, found.hypervisors) {
				_ = unix.Kill(one.pid, unix.SIGKILL)
			}
		}
	})
	c.before = c.traces()
	must.Eq(t, "", c.before.dead())
	if path.prepare != nil {
		path.prepare(c)
	}

	stop := stops.at(c.vm.config.AllocID, point)
	defer stop.release()
	answer := make(chan error, 1)
	go func() { answer <- path.call(c) }()
	var err error
	over := false
	for reached := false; !reached; {
		select {
		case <-stop.reached:
			reached = true
		case err = <-answer:
			over, answer = true, nil // a shim may still be on its way there
		case <-time.After(pointLimit):
			t.Fatalf("%s did not reach %s; it answered %t, %v", path.name, point, over, err)
		}
	}
	victims := c.find(point, victim, absent)
	c.kill(victims)
	stop.release()
	if !over {
		select {
		case err = <-answer:
		case <-time.After(pointLimit):
			t.Fatalf("%s does not return; %s", path.name, c.traces().text())
		}
	}
	if c.dead && !strings.HasPrefix(point, "shim.") {
		must.ErrorIs(t, err, structs.ErrPluginShutdown) // it stood still at this point, and can't have answered
	}
	if !c.dead {
		must.False(t, c.plugin.instance.Exited(), must.Sprint(err))
	}
	outcome := path.after(c, err)
	limit := cleanLimit
	if path.grace != "" {
		limit = reapLimit
	}
	began := time.Now()
	eventually(t, limit, "the host is as before", func() (bool, string) {
		text := c.traces().since(c.before)
		return text == "", text
	})
	if waited := time.Since(began); path.grace != "" && waited > 500*time.Millisecond {
		outcome = fmt.Sprintf("reaped, %.1f s", waited.Seconds())
	}
	must.StrNotContains(t, c.netd.list(t), c.vm.config.AllocID)
	c.plugin.instance.Kill()
	if len(victims) == 0 {
		return "-"
	}
	return outcome
}

// attend keeps open what an agent keeps open.
func (c *crashCase) attend() {
	health, err := c.plugin.driver.Fingerprint(context.Background())
	must.NoError(c.t, err)
	events, err := c.plugin.driver.TaskEvents(context.Background())
	must.NoError(c.t, err)
	go func() {
		for range health {
		}
	}()
	go func() {
		for range events {
		}
	}()
}

func (c *crashCase) relaunch() {
	c.plugin.relaunch()
	c.attend()
}

func (c *crashCase) traces() traces {
	found := c.plugin.tracesOf(filepath.Dir(c.plugin.options["state_dir"].(string)), c.vm.config.AllocID)
	for _, tap := range taps(c.t) {
		if strings.Contains(tap, c.vm.config.AllocID) {
			found.things = append(found.things, "link "+tap)
		}
	}
	return found
}

// find returns the processes that are the victim, at this moment. While a point of the start stops the plugin, its shim
// goes on up to the first answer of QEMU: these are waited for.
func (c *crashCase) find(point, victim string, absent map[string]bool) []int {
	after := slices.Index(startSteps, strings.TrimSuffix(strings.TrimSuffix(point, ".before"), ".after"))
	if after >= slices.Index(startSteps, "start.shim") && point != "start.shim.before" {
		eventually(c.t, pointLimit, "the VM's processes are there", func() (bool, string) {
			text := c.traces().running()
			return text == "", text
		})
	}
	found := c.traces()
	var pids []int
	if victim == "plugin" || victim == "all" {
		// The first to be killed, so that it sees nothing of the others' end.
		pids = append(pids, pid(c.t, c.plugin.instance))
		c.dead = true
	}
	for _, list := range []struct {
		victim    string
		processes []process
	}{{"monitor", found.monitors}, {"supervisor", found.supervisors}, {"QEMU", found.hypervisors}} {
		absent[list.victim] = len(list.processes) == 0
		if victim == list.victim || victim == "all" {
			for _, one := range list.processes {
				pids = append(pids, one.pid)
				c.hit = true
			}
		}
	}
	return pids
}

// kill returns when the processes are dead.
func (c *crashCase) kill(pids []int) {
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
	}
	for _, pid := range pids {
		eventually(c.t, callLimit, "the victim is dead", func() (bool, string) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			text := string(stat)
			return err != nil || strings.HasPrefix(text[strings.LastIndexByte(text, ')')+1:], " Z"), text
		})
	}
	if c.dead {
		eventually(c.t, callLimit, "Nomad sees that the plugin is dead", func() (bool, string) {
			return c.plugin.instance.Exited(), "running"
		})
	}
}

// The calls.

func (c *crashCase) start() error {
	handle, _, err := c.plugin.driver.StartTask(c.vm.config)
	if err == nil {
		c.handle = restored(c.t, handle)
	}
	return err
}

func (c *crashCase) recover() error { return c.plugin.driver.RecoverTask(c.handle) }

func (c *crashCase) stop() error {
	timeout := deathLimit
	if c.path.words != "" || c.path.name == "stop of a stuck QEMU" {
		timeout = 50 * time.Millisecond
	}
	return c.plugin.driver.StopTask(c.vm.config.ID, timeout, "")
}

func (c *crashCase) destroy() error { return c.plugin.driver.DestroyTask(c.vm.config.ID, true) }

// What comes before.

// run starts the task.
func (c *crashCase) run() {
	must.NoError(c.t, c.start())
	_ = c.vm.wait(context.Background())
	c.vm.says("stub: ready")
}

// forget starts the task for an agent that dies and forgets it.
func (c *crashCase) forget() {
	must.NoError(c.t, c.start())
	c.vm.config.ID = c.vm.config.AllocID + "/vm/" + uuid.Short()
}

// occupyPort lets QEMU fail, late in a start.
func (c *crashCase) occupyPort() {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.vm.port))
	must.NoError(c.t, err)
	c.t.Cleanup(func() { _ = listener.Close() })
}

func (c *crashCase) restart() {
	c.run()
	c.plugin.crash()
	c.relaunch()
}

// restartLate lets the VM end while there is no plugin.
func (c *crashCase) restartLate() {
	c.run()
	c.plugin.crash()
	c.kill([]int{c.traces().hypervisors[0].pid})
	c.hit = true
	c.waitDead()
	c.relaunch()
}

func (c *crashCase) waitDead() {
	eventually(c.t, deathLimit, "the VM's processes are gone", func() (bool, string) {
		text := c.traces().dead()
		return text == "", text
	})
}

// freeze makes a QEMU that obeys nobody.
func (c *crashCase) freeze() {
	c.run()
	must.NoError(c.t, unix.Kill(c.traces().hypervisors[0].pid, unix.SIGSTOP))
}

func (c *crashCase) end() {
	c.run()
	must.NoError(c.t, c.plugin.driver.StopTask(c.vm.config.ID, deathLimit, ""))
	c.waitDead()
}

func (c *crashCase) endWithoutGroups() {
	c.vm.config.Resources.LinuxResources.CpusetCgroupPath = ""
	c.end()
}

// What comes after.

// afterStart: Nomad asks the next plugin once more if the plugin has gone. It forgets a start that failed.
func (c *crashCase) afterStart(err error) string {
	outcome := "found"
	if c.dead {
		c.relaunch()
		err = c.start()
		must.NoError(c.t, err)
		outcome, c.hit = "started", false
	}
	if c.path.name == "start over a running VM" {
		// What was killed was the old one.
		must.NoError(c.t, err)
		outcome, c.hit = "started", false
	}
	if err != nil {
		must.True(c.t, c.hit, must.Sprintf("nothing was killed that a start needs: %v", err))
		c.unknown()
		return "refused"
	}
	return c.finish(outcome)
}

// afterFailure: both times the start must fail.
func (c *crashCase) afterFailure(err error) string {
	if c.dead {
		c.relaunch()
		err = c.start()
	}
	must.ErrorContains(c.t, err, "port")
	c.unknown()
	return "refused"
}

// unknown: of a start that failed, the plugin keeps nothing.
func (c *crashCase) unknown() {
	_, err := c.plugin.driver.InspectTask(c.vm.config.ID)
	notFound(c.t, err)
}

// afterNothing: the agent died with the plugin, and forgot the start.
func (c *crashCase) afterNothing(error) string {
	c.relaunch()
	return "gone"
}

// afterRecover: Nomad destroys what it can't recover. A plugin that died while it recovered is asked again by the next agent.
func (c *crashCase) afterRecover(err error) string {
	if c.dead {
		c.relaunch()
		must.NoError(c.t, c.recover())
	} else if err != nil {
		must.True(c.t, c.hit, must.Sprintf("nothing was killed: %v", err))
		must.NoError(c.t, c.destroy())
		return "refused"
	}
	return c.finish("found")
}

// afterStop: Nomad recovers the task with the next plugin, and stops it again.
func (c *crashCase) afterStop(err error) string {
	if c.dead {
		c.relaunch()
		must.NoError(c.t, c.recover())
		results := c.vm.wait(context.Background())
		must.NoError(c.t, c.stop())
		_ = c.ended(results)
	} else {
		must.NoError(c.t, err)
		_ = c.ended(c.vm.wait(context.Background()))
	}
	return "ended"
}

// afterDestroy: Nomad does not look at the answer.
func (c *crashCase) afterDestroy(err error) string {
	if c.dead {
		c.relaunch()
	} else {
		must.NoError(c.t, err)
	}
	return "gone"
}

// finish brings a started task to its end: it runs, or what was killed has ended it.
func (c *crashCase) finish(outcome string) string {
	results := c.vm.wait(context.Background())
	if c.hit {
		_ = c.ended(results)
		return "ended"
	}
	eventually(c.t, callLimit, "one VM runs", func() (bool, string) {
		text := c.traces().running()
		return text == "", text
	})
	// Only a guest that runs powers off. Its words may be lost: Nomad's log collection ends with the last writer, and
	// where shim and plugin were both killed there was none for a moment.
	must.NoError(c.t, c.stop())
	must.Zero(c.t, c.ended(results).ExitCode)
	return outcome
}

// ended takes the result, and does what Nomad does then.
func (c *crashCase) ended(results <-chan *drivers.ExitResult) *drivers.ExitResult {
	result := exited(c.t, results, deathLimit)
	must.NoError(c.t, result.Err)
	status, err := c.plugin.driver.InspectTask(c.vm.config.ID)
	must.NoError(c.t, err)
	must.Eq(c.t, drivers.TaskStateExited, status.State)
	must.NoError(c.t, c.destroy())
	c.unknown()
	return result
}

// netd is the daemon whose network the VMs are on.
type netd struct {
	program, config, socket string
	process                 *exec.Cmd
}

// startNetd starts the one without crash points, which are testing/netd's. Where nobody says anything it has one network,
// `default`. That makes links, filters and rules, so it must not be the host's network.
func startNetd(t *testing.T) *netd {
	t.Helper()
	links, err := net.Interfaces()
	must.NoError(t, err)
	for _, link := range links {
		own := link.Flags&net.FlagLoopback != 0 || link.Flags&net.FlagUp == 0
		must.True(t, own, must.Sprintf("%s: this is the host's network: run testing/nomad/test.sh", link.Name))
	}

	dir, err := os.MkdirTemp("", "n")
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &netd{
		program: filepath.Join(pluginDir(t), "netd"),
		config:  filepath.Join(dir, "netd.toml"),
		socket:  filepath.Join(dir, "netd.sock"),
	}
	must.NoError(t, os.WriteFile(d.config, fmt.Appendf(nil, "[daemon]\nsocket = %q\n", d.socket), 0o644))
	d.process = exec.Command(d.program, "serve", "--config", d.config)
	log, err := os.Create(filepath.Join(dir, "netd.log"))
	must.NoError(t, err)
	d.process.Stderr = log
	must.NoError(t, d.process.Start())
	_ = log.Close()
	t.Cleanup(func() {
		d.end()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("netd's log:\n%s", text)
		}
	})
	eventually(t, pointLimit, "netd answers", func() (bool, string) {
		conn, err := net.Dial("unix", d.socket)
		if err != nil {
			return false, err.Error()
		}
		_ = conn.Close()
		return true, ""
	})
	return d
}

// end ends it, if it runs.
func (d *netd) end() {
	if d.process.ProcessState == nil {
		_ = d.process.Process.Signal(unix.SIGTERM)
		_ = d.process.Wait()
	}
}

// list is every interface that it knows of.
func (d *netd) list(t *testing.T) string {
	t.Helper()
	text, err := exec.Command(d.program, "list", "--json", "--config", d.config).Output()
	must.NoError(t, err)
	return string(text)
}

// taps are all of netd's links to machines: the name, and the alias, which says whose it is.
func taps(t *testing.T) []string {
	t.Helper()
	table, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	must.NoError(t, err)
	links, err := syscall.ParseNetlinkMessage(table)
	must.NoError(t, err)
	var found []string
	for _, link := range links {
		if link.Header.Type != unix.RTM_NEWLINK {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&link)
		must.NoError(t, err)
		var name, alias string
		for _, one := range attributes {
			switch text := strings.TrimRight(string(one.Value), "\x00"); one.Attr.Type {
			case unix.IFLA_IFNAME:
				name = text
			case unix.IFLA_IFALIAS:
				alias = text
			}
		}
		if strings.HasPrefix(name, "ndt") {
			found = append(found, name+" "+alias)
		}
	}
	return found
}

// stops is what the crash points connect to.
type stops struct {
	lock  sync.Mutex
	armed map[string]*stop // by allocation
	seen  map[string]bool
}

// stop holds one point of one allocation, once.
type stop struct {
	point    string
	reached  chan struct{}
	released chan struct{}
	once     sync.Once
	free     sync.Once
}

func (s *stop) release() { s.free.Do(func() { close(s.released) }) }

// listenForPoints names the socket to all plugins that are launched from now on.
func listenForPoints(t *testing.T) *stops {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	must.NoError(t, err)
	path := filepath.Join(dir, "points.sock")
	listener, err := net.Listen("unix", path)
	must.NoError(t, err)
	must.NoError(t, os.Setenv("STEPPE_POINTS", path))
	all := &stops{armed: map[string]*stop{}, seen: map[string]bool{}}
	t.Cleanup(func() {
		_ = os.Unsetenv("STEPPE_POINTS")
		_ = listener.Close()
		_ = os.RemoveAll(dir)
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go all.serve(conn)
		}
	}()
	return all
}

func (s *stops) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	line, err := bufio.NewReader(conn).ReadString('\n')
	words := strings.Fields(line) // point, task, process
	if err != nil || len(words) != 3 {
		return
	}
	alloc, _, _ := strings.Cut(words[1], ".")
	s.lock.Lock()
	s.seen[words[0]] = true
	one := s.armed[alloc]
	s.lock.Unlock()
	if one == nil || one.point != words[0] {
		return
	}
	one.once.Do(func() {
		close(one.reached)
		<-one.released
	})
}

// at stops an allocation's next passage of a point.
func (s *stops) at(alloc, point string) *stop {
	one := &stop{point: point, reached: make(chan struct{}), released: make(chan struct{})}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.armed[alloc] = one
	return one
}

func (s *stops) reached() []string {
	s.lock.Lock()
	defer s.lock.Unlock()
	return names(s.seen)
}
