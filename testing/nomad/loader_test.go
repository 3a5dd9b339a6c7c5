package conformance

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/pluginmanager/drivermanager"
	"github.com/hashicorp/nomad/client/pluginmanager/drivermanager/state"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/singleton"
	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// A launch whose Kill is not answered costs 2 s, and an agent makes three. These bounds find one such, on a busy machine.
const (
	loadLimit = 1500 * time.Millisecond
	killLimit = 1 * time.Second
)

// TestConformanceLoader launches the plugin the ways an agent does: to look, to validate, to work, and again.
func TestConformanceLoader(t *testing.T) {
	_ = pluginDir(t)
	t.Run("load", func(t *testing.T) {
		start := time.Now()
		catalog, err := load(t, pluginDir(t), options(t))
		must.NoError(t, err)
		took(t, "load", start, loadLimit)
		noneLeft(t, killLimit)

		found := catalog.Catalog()[base.PluginTypeDriver]
		must.Len(t, 1, found)
		must.Eq(t, driverName, found[0].Name)
		must.NotEq(t, "", found[0].PluginVersion)
		t.Logf("driver %s %s, API %v", found[0].Name, found[0].PluginVersion, found[0].PluginApiVersions)
	})

	t.Run("dispense_and_kill", func(t *testing.T) {
		catalog, err := load(t, pluginDir(t), options(t))
		must.NoError(t, err)
		start := time.Now()
		instance, driver := dispense(t, catalog)
		took(t, "dispense", start, loadLimit)

		schema, err := driver.TaskConfigSchema()
		must.NoError(t, err)
		_, diagnostics := hclspecutils.Convert(schema)
		must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics))

		capabilities, err := driver.Capabilities()
		must.NoError(t, err)
		must.Eq(t, []drivers.NetIsolationMode{drivers.NetIsolationModeHost}, capabilities.NetIsolationModes)
		must.False(t, capabilities.MustInitiateNetwork)
		must.False(t, capabilities.DisableLogCollection)

		// A second agent start may come before the first one's plugin is gone.
		reattach, ok := instance.ReattachConfig()
		must.True(t, ok)
		again, err := catalog.Reattach(driverName, base.PluginTypeDriver, reattach)
		must.NoError(t, err)
		_, err = again.Plugin().(drivers.DriverPlugin).Capabilities()
		must.NoError(t, err)

		start = time.Now()
		instance.Kill()
		took(t, "kill", start, killLimit)
		noneLeft(t, killLimit)
	})

	t.Run("wrong_options", func(t *testing.T) {
		for _, wrong := range []struct {
			option string
			value  any
		}{
			{"accelerator", "turbo"},
			{"log_level", "loud"},
			{"vm_uids", "many"},
			{"state_dir", "relative/path"},
			{"run_dir", "relative/path"},
			{"image_paths", []any{"relative/path"}},
			{"image_paths", "not-a-list"},
			{"user_network", "perhaps"},
			{"colour", "green"},
		} {
			start := time.Now()
			_, err := load(t, pluginDir(t), with(options(t), wrong.option, wrong.value))
			must.Error(t, err, must.Sprintf("%s = %v", wrong.option, wrong.value))
			t.Logf("%s = %v: %s", wrong.option, wrong.value, strings.Join(strings.Fields(err.Error()), " "))
			must.StrContains(t, err.Error(), wrong.option)
			took(t, "refusal", start, loadLimit)
			// The loader never kills a plugin that refused its options: it ends itself.
			noneLeft(t, 2*time.Second)
		}
	})

	t.Run("three_overlapping_launches", func(t *testing.T) {
		shared := options(t) // one agent's: an agent's own launches overlap on the same directories
		var group sync.WaitGroup
		failures := make([]error, 3)
		start := time.Now()
		for i := range failures {
			group.Add(1)
			go func() {
				defer group.Done()
				_, failures[i] = load(t, pluginDir(t), shared)
			}()
		}
		group.Wait()
		took(t, "three loads at once", start, 3*loadLimit)
		for _, err := range failures {
			must.NoError(t, err)
		}
		noneLeft(t, killLimit)
	})

	t.Run("crash_is_seen_at_once", func(t *testing.T) {
		catalog, err := load(t, pluginDir(t), options(t))
		must.NoError(t, err)
		instance, driver := dispense(t, catalog)
		health, err := driver.Fingerprint(context.Background())
		must.NoError(t, err)
		first, ok := <-health
		must.True(t, ok)
		must.NoError(t, first.Err)

		start := time.Now()
		must.NoError(t, unix.Kill(pid(t, instance), unix.SIGKILL))
		for range health { // ends with the stream
		}
		took(t, "end of the fingerprint stream", start, 500*time.Millisecond)
		eventually(t, 500*time.Millisecond, "the plugin counts as exited", func() (bool, string) {
			return instance.Exited(), "running"
		})
		took(t, "exit seen", start, 500*time.Millisecond)
		noneLeft(t, killLimit)
	})

	t.Run("manager_relaunches_and_reattaches", testManager)
}

// memory is what the agent's client keeps of its plugins across restarts.
type memory struct {
	sync.Mutex
	plugins *state.PluginState
}

func (m *memory) GetDriverPluginState() (*state.PluginState, error) {
	m.Lock()
	defer m.Unlock()
	return m.plugins, nil
}

func (m *memory) PutDriverPluginState(plugins *state.PluginState) error {
	m.Lock()
	defer m.Unlock()
	m.plugins = plugins
	return nil
}

// pid of the one plugin that is kept.
func (m *memory) pid() int {
	m.Lock()
	defer m.Unlock()
	if m.plugins != nil {
		for _, reattach := range m.plugins.ReattachConfigs {
			return reattach.Pid
		}
	}
	return 0
}

func testManager(t *testing.T) {
	kept := &memory{}
	shared := options(t)
	start := func() (drivermanager.Manager, chan *structs.DriverInfo) {
		catalog, err := load(t, pluginDir(t), shared)
		must.NoError(t, err)
		updates := make(chan *structs.DriverInfo, 64)
		logger := testlog.HCLogger(t)
		manager := drivermanager.New(&drivermanager.Config{
			Logger:       logger,
			Loader:       singleton.NewSingletonLoader(logger, catalog),
			PluginConfig: agentConfig(),
			Updater: func(_ string, info *structs.DriverInfo) {
				select {
				case updates <- info:
				default: // nobody reads any more
				}
			},
			EventHandlerFactory: func(string, string) drivermanager.EventHandler { return nil },
			State:               kept,
			AllowedDrivers:      map[string]struct{}{driverName: {}},
		})
		go manager.Run()
		return manager, updates
	}
	healthy := func(updates chan *structs.DriverInfo) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		last := "nothing"
		for {
			select {
			case info := <-updates:
				if info.Detected && info.Healthy {
					return
				}
				last = fmt.Sprintf("%+v", info)
			case <-deadline:
				t.Fatalf("the driver did not become healthy; last: %s", last)
			}
		}
	}

	manager, updates := start()
	healthy(updates)
	first := kept.pid()
	must.Positive(t, first)

	began := time.Now()
	must.NoError(t, unix.Kill(first, unix.SIGKILL))
	eventually(t, 5*time.Second, "a new plugin process is kept", func() (bool, string) {
		now := kept.pid()
		return now != 0 && now != first, fmt.Sprint(now)
	})
	took(t, "relaunch", began, 2*time.Second)
	driver, err := manager.Dispense(driverName)
	must.NoError(t, err)
	_, err = driver.Capabilities()
	must.NoError(t, err)

	// The next agent finds the running plugin and does not configure it again.
	second := kept.pid()
	next, updates := start()
	healthy(updates)
	must.Eq(t, second, kept.pid())
	driver, err = next.Dispense(driverName)
	must.NoError(t, err)
	_, err = driver.Capabilities()
	must.NoError(t, err)

	next.Shutdown()
	manager.Shutdown()
	noneLeft(t, 2*killLimit)
}
