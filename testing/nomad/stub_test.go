package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
)

// stubOptions are those of a plugin whose guest is the stub. Emulation, because nothing is gained by KVM, and every
// launch of a plugin would prove it anew.
func stubOptions(t *testing.T) map[string]any {
	t.Helper()
	return with(with(options(t), "image_paths", []any{stubDir(t)}), "accelerator", "tcg")
}

// stub is the config block of a stub guest.
func stub(words string) string { return fmt.Sprintf("kernel = \"stub\"\ncmdline = %q", words) }

// TestStubGuest shows that the stub does what the other tests take for granted.
func TestStubGuest(t *testing.T) {
	initCgroups(t)
	p := startPluginWith(t, pluginDir(t), stubOptions(t))

	v := newVM(p, "stub", stub(""))
	began := time.Now()
	_ = v.start()
	v.says("stub: ready\r\n")
	t.Logf("ready %.1f ms after StartTask began", time.Since(began).Seconds()*1000)
	// Time for what a timer would do.
	before := cpu(t, hypervisors()[0].pid)
	time.Sleep(2 * time.Second)
	after := cpu(t, hypervisors()[0].pid)
	t.Logf("QEMU took %s until ready, and %s in the 2 s after that", before, after-before)
	must.Less(t, 200*time.Millisecond, after-before, must.Sprint("the guest does not halt"))
	results := v.wait(context.Background())
	must.NoError(t, p.driver.StopTask(v.config.ID, 10*time.Second, ""))
	must.Zero(t, exited(t, results, callLimit).ExitCode)
	v.says("stub: powering off\r\n")
	must.NoError(t, p.driver.DestroyTask(v.config.ID, false))

	v = newVM(p, "exit", stub("stub.exit=42"))
	_ = v.start()
	must.Eq(t, 42, exited(t, v.wait(context.Background()), bootLimit).ExitCode)
	must.NoError(t, p.driver.DestroyTask(v.config.ID, false))

	v = newVM(p, "deaf", stub("stub.ignore-poweroff"))
	_ = v.start()
	results = v.wait(context.Background())
	must.NoError(t, p.driver.StopTask(v.config.ID, 100*time.Millisecond, ""))
	must.Eq(t, 137, exited(t, results, callLimit).ExitCode)
	must.NoError(t, p.driver.DestroyTask(v.config.ID, false))
	p.instance.Kill()
	noneLeft(t, killLimit)
}

// cpu is the processor time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must.NoError(t, err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ is 100 on every Linux that runs here
}

// TestStarts_64AtOnce asks for 64 virtual machines in one moment.
func TestStarts_64AtOnce(t *testing.T) {
	const count = 64
	initCgroups(t)
	p := startPluginWith(t, pluginDir(t), stubOptions(t))
	// The first start opens what the plugin keeps: the log of its shims, and threads.
	first := newVM(p, "first", stub(""))
	_ = first.start()
	must.NoError(t, p.driver.DestroyTask(first.config.ID, true))

	names := []string{filepath.Dir(p.options["state_dir"].(string))}
	vms := make([]*vm, count)
	for i := range vms {
		vms[i] = newVM(p, fmt.Sprintf("vm-%d", i), stub(""))
		names = append(names, vms[i].config.AllocID)
	}
	open := descriptors(pid(t, p.instance))
	before := p.tracesOf(names...)
	must.Eq(t, "", before.dead())

	at := make([]time.Duration, count)
	began := time.Now()
	each(t, vms, func(i int, v *vm) error {
		handle, _, err := p.driver.StartTask(v.config)
		at[i] = time.Since(began)
		if err == nil && handle.State != drivers.TaskStateRunning {
			err = fmt.Errorf("state %q", handle.State)
		}
		return err
	})
	started := time.Since(began)
	for _, v := range vms {
		v.says("stub: ready\r\n")
	}
	ready := time.Since(began)
	t.Logf("%d starts at once: all answered after %.2f s, the first after %.2f s; all guests ready after %.2f s",
		count, started.Seconds(), fastest(at).Seconds(), ready.Seconds())
	found := p.tracesOf(names...)
	must.Len(t, count, found.monitors)
	must.Len(t, count, found.supervisors)
	must.Len(t, count, found.hypervisors)
	for _, v := range vms {
		must.Eq(t, "", p.tracesOf(v.config.AllocID).running())
		status, err := p.driver.InspectTask(v.config.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateRunning, status.State)
	}
	leases, err := os.ReadDir(filepath.Join(p.options["run_dir"].(string), "uids"))
	must.NoError(t, err)
	must.Len(t, count, leases)

	began = time.Now()
	each(t, vms, func(_ int, v *vm) error { return p.driver.DestroyTask(v.config.ID, true) })
	t.Logf("%d destroyed at once: %.2f s", count, time.Since(began).Seconds())
	eventually(t, callLimit, "the host is as before", func() (bool, string) {
		text := p.tracesOf(names...).since(before)
		return text == "", text
	})
	eventually(t, callLimit, "the plugin has closed what it opened", func() (bool, string) {
		now := descriptors(pid(t, p.instance))
		return now <= open, fmt.Sprintf("%d descriptors, %d before", now, open)
	})
	p.instance.Kill()
	noneLeft(t, killLimit)
}

// each does something for all at the same time.
func each(t *testing.T, vms []*vm, what func(int, *vm) error) {
	t.Helper()
	failures := make([]error, len(vms))
	var group sync.WaitGroup
	for i, v := range vms {
		group.Go(func() { failures[i] = what(i, v) })
	}
	group.Wait()
	for i, err := range failures {
		must.NoError(t, err, must.Sprint(vms[i].config.Name))
	}
}

func fastest(times []time.Duration) time.Duration {
	least := times[0]
	for _, one := range times {
		least = min(least, one)
	}
	return least
}
