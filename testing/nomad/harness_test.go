package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/cgroupslib"
	"github.com/hashicorp/nomad/client/logmon"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/helper/pluginutils/loader"
	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
)

const (
	// A guest is ready after 1.5 s on an idle machine; this one may be busy.
	bootLimit = 60 * time.Second
	// What an answer that waits for no guest may take.
	callLimit = 1 * time.Second
)

// plugin is the driver as one agent has it: directories that outlive a process, and the process of now.
type plugin struct {
	t        *testing.T
	catalog  *loader.PluginLoader
	options  map[string]any
	instance loader.PluginInstance
	driver   drivers.DriverPlugin
}

func startPlugin(t *testing.T) *plugin {
	t.Helper()
	return startPluginWith(t, pluginDir(t), with(options(t), "image_paths", []any{guestDir(t)}))
}

func startPluginWith(t *testing.T, dir string, options map[string]any) *plugin {
	t.Helper()
	p := &plugin{t: t, options: options}
	catalog, err := load(t, dir, p.options)
	must.NoError(t, err)
	p.catalog = catalog
	p.instance, p.driver = dispense(t, catalog)
	return p
}

// crash kills the process, as an upgrade gone wrong would, and returns when it is dead.
func (p *plugin) crash() {
	p.t.Helper()
	process, err := os.FindProcess(pid(p.t, p.instance))
	must.NoError(p.t, err)
	must.NoError(p.t, process.Kill())
	eventually(p.t, callLimit, "the plugin is dead", func() (bool, string) { return p.instance.Exited(), "running" })
}

func (p *plugin) relaunch() {
	p.t.Helper()
	p.instance, p.driver = dispense(p.t, p.catalog)
}

// vm is one task as Nomad would hand it over: its directories, its log collection, its cgroup.
type vm struct {
	t       *testing.T
	plugin  *plugin
	config  *drivers.TaskConfig
	harness *testutils.DriverHarness
	logs    logmon.LogMon
	port    int
}

// newVM makes all that Nomad makes before StartTask. config is the inside of the task's config block.
func newVM(p *plugin, name, config string) *vm {
	t := p.t
	t.Helper()
	alloc := uuid.Generate()
	v := &vm{t: t, plugin: p, port: freePort(t)}
	v.config = &drivers.TaskConfig{
		ID:            alloc + "/" + name + "/" + uuid.Short(),
		AllocID:       alloc,
		Name:          name,
		JobName:       "conformance",
		JobID:         "conformance",
		TaskGroupName: "group",
		Namespace:     "default",
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{
				Cpu:    structs.AllocatedCpuResources{CpuShares: 500},
				Memory: structs.AllocatedMemoryResources{MemoryMB: 128},
			},
			LinuxResources: &drivers.LinuxResources{
				CPUShares:        500,
				MemoryLimitBytes: 128 << 20,
				CpusetCgroupPath: cgroupslib.LinuxResourcesPath(alloc, name, false),
			},
			Ports: &structs.AllocatedPorts{{Label: "http", Value: v.port, To: 80, HostIP: "127.0.0.1"}},
		},
	}
	encode(t, p.driver, v.config, config)

	// The harness' own Go server between us and the plugin drops fields: the calls go straight to the process.
	v.harness = testutils.NewDriverHarness(t, p.driver)
	v.harness.DriverPlugin = p.driver
	t.Cleanup(v.harness.MkAllocDir(v.config, false))
	// Not the harness' own log collection, which can't be started again as Nomad does for each start of a task.
	v.logs = logmon.NewLogMon(testlog.HCLogger(t).Named("logmon"))
	t.Cleanup(func() { _ = v.logs.Stop() })
	logDir := v.config.TaskDir().LogDir
	v.config.StdoutPath = filepath.Join(logDir, "."+name+".stdout.fifo")
	v.config.StderrPath = filepath.Join(logDir, "."+name+".stderr.fifo")
	v.collectLogs()
	if os.Getuid() == 0 && cgroupslib.GetMode() != cgroupslib.OFF {
		v.harness.MakeTaskCgroup(alloc, name)
	}
	t.Cleanup(func() { _ = p.driver.DestroyTask(v.config.ID, true) })
	return v
}

// collectLogs is what Nomad does before each start: nothing where the collection runs.
func (v *vm) collectLogs() {
	v.t.Helper()
	must.NoError(v.t, v.logs.Start(&logmon.LogConfig{
		LogDir:        v.config.TaskDir().LogDir,
		StdoutLogFile: v.config.Name + ".stdout",
		StderrLogFile: v.config.Name + ".stderr",
		StdoutFifo:    v.config.StdoutPath,
		StderrFifo:    v.config.StderrPath,
		MaxFiles:      10,
		MaxFileSizeMB: 10,
	}))
}

// encode does with a config block what Nomad's client does, by the schema of the running plugin.
func encode(t *testing.T, driver drivers.DriverPlugin, task *drivers.TaskConfig, config string) {
	t.Helper()
	must.NoError(t, tryEncode(t, driver, task, config))
}

func tryEncode(t *testing.T, driver drivers.DriverPlugin, task *drivers.TaskConfig, config string) error {
	t.Helper()
	schema, err := driver.TaskConfigSchema()
	must.NoError(t, err)
	spec, diagnostics := hclspecutils.Convert(schema)
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics))
	block := hclutils.HclConfigToInterface(t, "config {\n"+config+"\n}")
	value, diagnostics, _ := hclutils.ParseHclInterface(block, spec, nil)
	if diagnostics.HasErrors() {
		return diagnostics
	}
	return task.EncodeDriverConfig(value)
}

func (v *vm) start() *drivers.TaskHandle {
	v.t.Helper()
	start := time.Now()
	handle, _, err := v.plugin.driver.StartTask(v.config)
	must.NoError(v.t, err)
	took(v.t, "StartTask "+v.config.Name, start, 5*time.Second)
	must.Positive(v.t, handle.Version)
	must.Positive(v.t, len(handle.DriverState))
	must.Eq(v.t, drivers.TaskStateRunning, handle.State)
	must.NotNil(v.t, handle.Config)
	must.Eq(v.t, v.config.ID, handle.Config.ID)
	return restored(v.t, handle)
}

// restored is a handle as an agent finds it after its own restart: the raw driver config is not kept.
func restored(t *testing.T, handle *drivers.TaskHandle) *drivers.TaskHandle {
	t.Helper()
	text, err := json.Marshal(handle)
	must.NoError(t, err)
	var copied drivers.TaskHandle
	must.NoError(t, json.Unmarshal(text, &copied))
	return &copied
}

// wait asks for the exit result.
func (v *vm) wait(ctx context.Context) <-chan *drivers.ExitResult {
	v.t.Helper()
	results, err := v.plugin.driver.WaitTask(ctx, v.config.ID)
	must.NoError(v.t, err)
	return results
}

// exited takes one result within the limit.
func exited(t *testing.T, results <-chan *drivers.ExitResult, limit time.Duration) *drivers.ExitResult {
	t.Helper()
	select {
	case result, ok := <-results:
		must.True(t, ok)
		return result
	case <-time.After(limit):
		t.Fatalf("no exit result within %s; processes: %v", limit, ours())
		return nil
	}
}

// log is what Nomad's log collection has written.
func (v *vm) log(stream string) string {
	text, _ := os.ReadFile(filepath.Join(v.config.TaskDir().LogDir, v.config.Name+"."+stream+".0"))
	return string(text)
}

func (v *vm) says(line string) {
	v.t.Helper()
	eventually(v.t, bootLimit, "the guest says "+line, func() (bool, string) {
		// Asked before the log is read: what an ended VM has not said by then, it never says.
		status, err := v.plugin.driver.InspectTask(v.config.ID)
		log := v.log("stdout")
		if strings.Contains(log, line) {
			return true, ""
		}
		if err == nil && status.State == drivers.TaskStateExited && time.Since(status.CompletedAt) > callLimit {
			v.t.Fatalf("the VM ended and never said %q: %s%s", line, log, v.log("stderr"))
		}
		return false, log + v.log("stderr")
	})
}

// get asks the guest's web server.
func (v *vm) get(path string) string {
	v.t.Helper()
	var body string
	client := http.Client{Timeout: 5 * time.Second}
	eventually(v.t, bootLimit, "the guest answers "+path, func() (bool, string) {
		response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", v.port, path))
		if err != nil {
			return false, err.Error()
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		body = string(text)
		return err == nil && response.StatusCode == http.StatusOK, fmt.Sprint(response.Status, err)
	})
	return body
}

func (v *vm) uptime() float64 {
	v.t.Helper()
	var status struct{ Uptime float64 }
	must.NoError(v.t, json.Unmarshal([]byte(v.get("/cgi-bin/status")), &status))
	return status.Uptime
}

// notFound is what Nomad's client looks for in an error's text: the type does not cross the wire.
func notFound(t *testing.T, err error) {
	t.Helper()
	must.ErrorContains(t, err, drivers.ErrTaskNotFound.Error())
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port
}

// initCgroups makes what a client makes before its first task; the harness makes only the task's own groups.
func initCgroups(t *testing.T) {
	t.Helper()
	if cgroupslib.GetMode() == cgroupslib.CG1 && os.Getuid() == 0 {
		topology := agentConfig().Driver.Topology
		must.NoError(t, cgroupslib.Init(testlog.HCLogger(t), topology.UsableCores().String()))
	}
}

// TestConformanceHarness leads real virtual machines through the life of a task, with Nomad's driver harness.
func TestConformanceHarness(t *testing.T) {
	_, _ = pluginDir(t), guestDir(t)
	initCgroups(t)
	t.Run("fingerprint", testFingerprint)
	t.Run("unknown_tasks", testUnknownTasks)
	t.Run("bad_config", testBadConfig)
	t.Run("service", testService)
	t.Run("batch", testBatch)
	t.Run("exit_while_plugin_is_down", testExitWhileDown)
	t.Run("destroy_running", testDestroyRunning)
	noneLeft(t, 5*time.Second)
}

func testFingerprint(t *testing.T) {
	p := startPlugin(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start := time.Now()
	health, err := p.driver.Fingerprint(ctx)
	must.NoError(t, err)
	first, ok := <-health
	must.True(t, ok)
	took(t, "first fingerprint", start, callLimit)
	must.NoError(t, first.Err)
	must.Eq(t, drivers.HealthStateHealthy, first.Health, must.Sprint(first.HealthDescription))
	for name, value := range first.Attributes {
		t.Logf("%s = %s", name, value.GoString())
		must.StrHasPrefix(t, "driver."+driverName+".", name)
	}
	must.Positive(t, len(first.Attributes))

	// A second reader does not take the first one's place.
	second, err := p.driver.Fingerprint(ctx)
	must.NoError(t, err)
	start = time.Now()
	must.NotNil(t, <-second)
	took(t, "first fingerprint of a second reader", start, callLimit)
}

func testUnknownTasks(t *testing.T) {
	p := startPlugin(t)
	id := uuid.Generate() + "/nobody/" + uuid.Short()
	must.NoError(t, p.driver.StopTask(id, time.Second, ""))
	must.NoError(t, p.driver.DestroyTask(id, false))
	must.NoError(t, p.driver.DestroyTask(id, true))
	_, err := p.driver.InspectTask(id)
	notFound(t, err)
	results, err := p.driver.WaitTask(context.Background(), id)
	must.NoError(t, err) // the client's call only opens the question
	notFound(t, exited(t, results, callLimit).Err)
	samples, err := p.driver.TaskStats(context.Background(), id, time.Second)
	if err != nil {
		notFound(t, err)
	} else {
		sample, open := <-samples
		must.False(t, open, must.Sprint(sample))
	}
	must.Error(t, p.driver.SignalTask(id, "SIGHUP"))
	_, err = p.driver.ExecTask(id, []string{"true"}, time.Second)
	must.Error(t, err)
}

func testBadConfig(t *testing.T) {
	p := startPlugin(t)
	before := len(ours())

	// The schema's part: refused before the plugin is asked.
	for _, wrong := range []string{
		`initrd = "initrd.img"`,                       // no kernel
		"kernel = \"vmlinux\"\ncolour = \"green\"",    // unknown key
		"kernel = \"vmlinux\"\ndisk { name = \"x\" }", // a disk without a file
	} {
		err := tryEncode(t, p.driver, &drivers.TaskConfig{}, wrong)
		must.Error(t, err, must.Sprint(wrong))
		t.Logf("%q: %v", wrong, err)
	}

	// The plugin's part: a sentence that names the value, and nothing left.
	v := newVM(p, "wrong", `kernel = "vmlinux"`)
	for _, wrong := range []struct{ config, names string }{
		{`kernel = "no-such-kernel"`, "no-such-kernel"},
		{"kernel = \"vmlinux\"\ninitrd = \"local/no-such-initrd\"", "no-such-initrd"},
		{"kernel = \"vmlinux\"\nmachine = \"q35\"", "q35"},
		{"kernel = \"vmlinux\"\naccelerator = \"turbo\"", "turbo"},
		{`kernel = "local/../../../../escape"`, "escape"},
	} {
		encode(t, p.driver, v.config, wrong.config)
		start := time.Now()
		_, _, err := p.driver.StartTask(v.config)
		must.Error(t, err, must.Sprint(wrong.config))
		t.Logf("%q: %v", wrong.config, err)
		must.StrContains(t, err.Error(), wrong.names)
		must.False(t, structs.IsRecoverable(err), must.Sprint("a wrong config stays wrong"))
		took(t, "refusal", start, callLimit)
		_, err = p.driver.InspectTask(v.config.ID)
		notFound(t, err)
	}
	must.Eq(t, before, len(ours()), must.Sprint(ours()))
	kept, _ := os.ReadDir(filepath.Join(p.options["state_dir"].(string), "tasks"))
	must.Len(t, 0, kept)
}

// testService starts one VM and asks of it all that needs a running one.
func testService(t *testing.T) {
	p := startPlugin(t)
	v := newVM(p, "service", `
		kernel  = "vmlinux"
		initrd  = "initrd.img"
		cmdline = "quiet steppe.httpd steppe.ticks=fast"
		network {
			name  = "user"
			ports = ["http"]
		}`)
	began := time.Now()
	handle := v.start()
	must.NoError(t, v.harness.WaitUntilStarted(v.config.ID, callLimit))
	must.Len(t, 1, hypervisors())
	v.says("steppe-guest: ready")
	t.Logf("guest ready after %.2f s", time.Since(began).Seconds())

	status, err := p.driver.InspectTask(v.config.ID)
	must.NoError(t, err)
	must.Eq(t, v.config.ID, status.ID)
	must.Eq(t, v.config.Name, status.Name)
	must.Eq(t, drivers.TaskStateRunning, status.State)
	must.Less(t, 10*time.Second, status.StartedAt.Sub(began).Abs())

	ctx, cancel := context.WithCancel(context.Background())
	samples, err := p.driver.TaskStats(ctx, v.config.ID, 100*time.Millisecond)
	must.NoError(t, err)
	sample, ok := <-samples
	must.True(t, ok)
	must.Positive(t, sample.Timestamp)
	must.Greater(t, uint64(16<<20), sample.ResourceUsage.MemoryStats.RSS)
	must.SliceNotEmpty(t, sample.ResourceUsage.MemoryStats.Measured)
	must.SliceNotEmpty(t, sample.ResourceUsage.CpuStats.Measured)
	t.Logf("RSS %d MiB, CPU %.1f %%", sample.ResourceUsage.MemoryStats.RSS>>20, sample.ResourceUsage.CpuStats.Percent)
	cancel()

	must.StrContains(t, v.get("/"), "Hello from a microVM")

	// A wait that is given up harms neither the task nor the other waits.
	given, cancel := context.WithCancel(context.Background())
	abandoned := v.wait(given)
	cancel()
	must.Error(t, exited(t, abandoned, callLimit).Err)

	// The plugin dies and comes again; nothing happens to the guest, and no line of its console is lost.
	v.says("tick 3\r")
	machine := hypervisors()[0].pid
	uptime := v.uptime()

	p.crash()
	p.relaunch()
	v.harness.DriverPlugin = p.driver
	must.NoError(t, p.driver.RecoverTask(handle))
	must.NoError(t, p.driver.RecoverTask(handle)) // known already: fine
	must.NoError(t, v.harness.WaitUntilStarted(v.config.ID, callLimit))
	recovered, err := p.driver.InspectTask(v.config.ID)
	must.NoError(t, err)
	must.Eq(t, status.ID, recovered.ID)
	must.Eq(t, status.Name, recovered.Name)
	must.Eq(t, status.StartedAt.UnixNano(), recovered.StartedAt.UnixNano())
	must.Greater(t, uptime, v.uptime())
	must.Len(t, 1, hypervisors())
	must.Eq(t, machine, hypervisors()[0].pid)

	v.says(fmt.Sprintf("tick %d\r", lastTick(v.log("stdout"))+5))

	first, second := v.wait(context.Background()), v.wait(context.Background())
	must.ErrorContains(t, p.driver.DestroyTask(v.config.ID, false), "running")
	stops := make(chan error, 2)
	stop := time.Now()
	for range cap(stops) {
		go func() { stops <- p.driver.StopTask(v.config.ID, 20*time.Second, "") }()
	}
	for range cap(stops) {
		must.NoError(t, <-stops)
	}
	took(t, "orderly stop", stop, 15*time.Second)
	for _, results := range []<-chan *drivers.ExitResult{first, second, v.wait(context.Background())} {
		result := exited(t, results, callLimit)
		must.NoError(t, result.Err)
		must.Zero(t, result.ExitCode)
		must.Zero(t, result.Signal)
	}
	must.NoError(t, p.driver.StopTask(v.config.ID, time.Second, "")) // stopped already: fine
	v.says("steppe-guest: bye")
	must.Greater(t, 7, lastTick(v.log("stdout")))
	must.Eq(t, lastTick(v.log("stdout")), strings.Count(v.log("stdout"), "tick "), must.Sprint("a line of the console is lost"))

	status, err = p.driver.InspectTask(v.config.ID)
	must.NoError(t, err)
	must.Eq(t, drivers.TaskStateExited, status.State)
	must.True(t, status.CompletedAt.After(status.StartedAt))
	must.NotNil(t, status.ExitResult)

	must.NoError(t, p.driver.DestroyTask(v.config.ID, false))
	must.NoError(t, p.driver.DestroyTask(v.config.ID, true)) // gone already: fine
	_, err = p.driver.InspectTask(v.config.ID)
	notFound(t, err)
	must.Error(t, p.driver.RecoverTask(handle)) // nothing is known of it any more
	p.instance.Kill()
	noneLeft(t, 2*time.Second)
}

// lastTick is the highest of the guest's numbered lines.
func lastTick(log string) int {
	last := 0
	for line := range strings.SplitSeq(log, "\n") {
		var number int
		if n, _ := fmt.Sscanf(line, "tick %d", &number); n == 1 {
			last = number
		}
	}
	return last
}

func testBatch(t *testing.T) {
	p := startPlugin(t)
	v := newVM(p, "batch", `
		kernel  = "vmlinux"
		initrd  = "initrd.img"
		cmdline = "quiet steppe.exit=42"`)
	_ = v.start()
	result := exited(t, v.wait(context.Background()), bootLimit)
	must.NoError(t, result.Err)
	must.Eq(t, 42, result.ExitCode)
	must.Zero(t, result.Signal)
	must.False(t, result.OOMKilled)
	v.says("steppe-guest: exit 42") // the console's last line, of a machine that ended at once
	must.Eq(t, 42, exited(t, v.wait(context.Background()), callLimit).ExitCode)
	must.NoError(t, p.driver.DestroyTask(v.config.ID, false))
	must.SliceEmpty(t, hypervisors())
}

func testExitWhileDown(t *testing.T) {
	p := startPlugin(t)
	v := newVM(p, "down", `
		kernel  = "vmlinux"
		initrd  = "initrd.img"
		cmdline = "quiet steppe.exit=7"`)
	handle := v.start()
	must.Len(t, 1, hypervisors())
	p.crash()
	eventually(t, bootLimit, "the guest has ended", func() (bool, string) {
		return len(hypervisors()) == 0, fmt.Sprint(hypervisors())
	})
	ended := time.Now()
	time.Sleep(500 * time.Millisecond) // so that "found now" and "ended then" differ
	p.relaunch()
	must.NoError(t, p.driver.RecoverTask(handle))
	result := exited(t, v.wait(context.Background()), callLimit)
	must.NoError(t, result.Err)
	must.Eq(t, 7, result.ExitCode)
	status, err := p.driver.InspectTask(v.config.ID)
	must.NoError(t, err)
	must.Less(t, 300*time.Millisecond, status.CompletedAt.Sub(ended).Abs())
	must.NoError(t, p.driver.DestroyTask(v.config.ID, true))
}

// testDestroyRunning needs no booted guest.
func testDestroyRunning(t *testing.T) {
	p := startPlugin(t)
	v := newVM(p, "destroy", `
		kernel = "vmlinux"
		initrd = "initrd.img"`)
	_ = v.start()
	results := v.wait(context.Background())
	start := time.Now()
	must.NoError(t, p.driver.DestroyTask(v.config.ID, true))
	took(t, "destroy of a running VM", start, 3*time.Second)
	must.SliceEmpty(t, hypervisors())
	_ = exited(t, results, callLimit) // a result or an error, but an end
	_, err := p.driver.InspectTask(v.config.ID)
	notFound(t, err)
}
