// Package conformance asks one question: does Nomad's own code accept our plugin? It is answered by Nomad's loader, its
// driver manager, its driver harness and an agent in this process, against the binaries of STEPPE_PLUGIN_DIR.
//
// The Go names map to the names in testing/checks.txt: TestConformanceLoader is `conformance_loader`. A missing input is
// a failure, never a skip.
package conformance

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/helper/pluginutils/loader"
	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/nomad/structs/config"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

const (
	pluginFile = "nomad-driver-microvm" // the label of the agent's plugin block
	driverName = "microvm"
)

// TestMain makes this process the reaper of its orphans. A plugin that dies leaves its shims to their next reaper, so
// whatever our binaries started is found among our descendants, by whatever name.
func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "cannot become a subreaper:", err)
		os.Exit(1)
	}
	go reap()
	if testlog.HCLoggerTestLevel() == hclog.Off {
		hclog.DefaultOutput = io.Discard // the harness' in-process half asks no one
	}
	code := m.Run()
	// What a test that failed has left; the others prove that there is nothing.
	for _, p := range ours() {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	os.Exit(code)
}

// need returns an input, or fails with the sentence that says where it comes from.
func need(t *testing.T, name, what string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: it names %s; run testing/nomad/test.sh, which says how", name, what)
	}
	if _, err := os.Stat(value); err != nil {
		t.Fatalf("%s does not name %s: %v", name, what, err)
	}
	return value
}

func pluginDir(t *testing.T) string {
	t.Helper()
	return programs(t, "STEPPE_PLUGIN_DIR", "the directory of nomad-driver-microvm and microvm-shim")
}

// programs is a directory of both our programs.
func programs(t *testing.T, variable, what string) string {
	t.Helper()
	dir := need(t, variable, what)
	for _, name := range []string{pluginFile, "microvm-shim"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%s holds no program %s: %v", variable, name, err)
		}
	}
	return dir
}

func stubDir(t *testing.T) string {
	t.Helper()
	return need(t, "STEPPE_STUB_DIR", "the directory that testing/guest/stub/build.sh prints")
}

func guestDir(t *testing.T) string {
	t.Helper()
	return need(t, "STEPPE_GUEST_DIR", "the directory that testing/guest/build.sh prints")
}

// options are one agent's plugin options: directories of its own, so that two of them never meet. The path is short
// because a unix socket's is at most 108 bytes.
func options(t *testing.T) map[string]any {
	t.Helper()
	dir, err := os.MkdirTemp("", "o")
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return map[string]any{
		"state_dir":    filepath.Join(dir, "state"),
		"run_dir":      filepath.Join(dir, "run"),
		"user_network": true,
	}
}

// with returns options with one more.
func with(options map[string]any, key string, value any) map[string]any {
	more := map[string]any{key: value}
	for k, v := range options {
		if k != key {
			more[k] = v
		}
	}
	return more
}

// load is what an agent's start does: find the plugin, ask what it is, validate its options.
func load(t *testing.T, dir string, options map[string]any) (*loader.PluginLoader, error) {
	t.Helper()
	return loader.NewPluginLoader(&loader.PluginLoaderConfig{
		Logger:            testlog.HCLogger(t),
		PluginDir:         dir,
		Configs:           []*config.PluginConfig{{Name: pluginFile, Config: options}},
		SupportedVersions: loader.AgentSupportedApiVersions,
	})
}

// agentConfig is what an agent tells its drivers.
func agentConfig() *base.AgentConfig {
	return &base.AgentConfig{Driver: &base.ClientDriverConfig{
		ClientMinPort: 14000,
		ClientMaxPort: 14512,
		Topology:      numalib.Scan(numalib.PlatformScanners(true)),
	}}
}

// dispense starts the plugin for work, as an agent does once.
func dispense(t *testing.T, catalog loader.PluginCatalog) (loader.PluginInstance, drivers.DriverPlugin) {
	t.Helper()
	instance, err := catalog.Dispense(driverName, base.PluginTypeDriver, agentConfig(), testlog.HCLogger(t))
	must.NoError(t, err)
	t.Cleanup(instance.Kill)
	return instance, instance.Plugin().(drivers.DriverPlugin)
}

// pid of a plugin's process.
func pid(t *testing.T, instance loader.PluginInstance) int {
	t.Helper()
	reattach, ok := instance.ReattachConfig()
	must.True(t, ok)
	return reattach.Pid
}

// took fails if more than limit has gone since start, and logs the figure.
func took(t *testing.T, what string, start time.Time, limit time.Duration) {
	t.Helper()
	d := time.Since(start)
	t.Logf("%s: %.1f ms", what, float64(d.Microseconds())/1000)
	if d > limit {
		t.Errorf("%s took %s, more than %s", what, d, limit)
	}
}

// eventually waits for a condition and fails with the last text it gave. It looks less often the longer it waits: looking
// takes processor time, and others measure.
func eventually(t *testing.T, limit time.Duration, what string, condition func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 80*time.Millisecond) {
		ok, text := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s; last seen: %s", limit, what, text)
		}
		time.Sleep(pause)
	}
}

// process is one row of /proc.
type process struct {
	pid, parent int
	comm        string
	zombie      bool
	cmdline     string // only of ours
}

func (p process) String() string {
	return fmt.Sprintf("%d %s %.120q", p.pid, p.comm, p.cmdline)
}

func processes() []process {
	var all []process
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		text := string(stat)
		open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		parent, _ := strconv.Atoi(fields[1])
		all = append(all, process{
			pid:    id,
			parent: parent,
			comm:   text[open+1 : end],
			zombie: fields[0] == "Z",
		})
	}
	return all
}

// ours are the living descendants of this process.
func ours() []process {
	all := processes()
	mine := map[int]bool{os.Getpid(): true}
	var found []process
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if mine[p.parent] && !mine[p.pid] {
				mine[p.pid] = true
				grew = true
				if !p.zombie {
					cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
					p.cmdline = strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
					found = append(found, p)
				}
			}
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].pid < found[j].pid })
	return found
}

// noneLeft waits until every process that this one started, or inherited, is gone.
func noneLeft(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "no process is left", func() (bool, string) {
		left := ours()
		return len(left) == 0, fmt.Sprint(left)
	})
}

// hypervisors are the living QEMU processes below this one.
func hypervisors() []process {
	var found []process
	for _, p := range ours() {
		if strings.HasPrefix(p.comm, "qemu-system") {
			found = append(found, p)
		}
	}
	return found
}

// reap collects orphans that init would collect elsewhere. The others are waited for by the code that started them.
func reap() {
	for ; ; time.Sleep(20 * time.Millisecond) {
		for _, p := range processes() {
			orphan := strings.HasPrefix(p.comm, "microvm-shim") || strings.HasPrefix(p.comm, "qemu-system")
			if p.parent == os.Getpid() && p.zombie && orphan {
				_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}
