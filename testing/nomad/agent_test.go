package conformance

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/command/agent"
	"github.com/hashicorp/nomad/nomad/structs/config"
	"github.com/shoenig/test/must"
)

// TestConformanceAgent runs a whole agent, server and client, in this process. It is quick, and cannot be killed: restarts
// are testing/e2e's.
func TestConformanceAgent(t *testing.T) {
	options := with(options(t), "image_paths", []any{guestDir(t)})
	nomad := agent.NewTestAgent(t, "steppe", func(c *agent.Config) {
		c.PluginDir = pluginDir(t)
		c.Plugins = []*config.PluginConfig{{Name: pluginFile, Config: options}}
		if c.Client.Options == nil {
			c.Client.Options = map[string]string{}
		}
		c.Client.Options["fingerprint.denylist"] = "env_aws,env_gce,env_azure,env_digitalocean"
		c.Client.Options["driver.allowlist"] = driverName
	})
	defer func() {
		nomad.Shutdown()
		noneLeft(t, 5*time.Second)
	}()
	client := nomad.APIClient()

	nodes, _, err := client.Nodes().List(nil)
	must.NoError(t, err)
	must.Len(t, 1, nodes)
	eventually(t, 10*time.Second, "the driver is healthy on the node", func() (bool, string) {
		node, _, err := client.Nodes().Info(nodes[0].ID, nil)
		if err != nil {
			return false, err.Error()
		}
		driver := node.Drivers[driverName]
		return driver != nil && driver.Detected && driver.Healthy, fmt.Sprintf("%+v", driver)
	})

	job := api.NewBatchJob("codes", "codes", "global", 50)
	for _, code := range []int{0, 7} {
		task := api.NewTask("vm", driverName)
		task.SetConfig("kernel", "vmlinux")
		task.SetConfig("initrd", "initrd.img")
		task.SetConfig("cmdline", fmt.Sprintf("quiet steppe.exit=%d", code))
		memory, cpu, never := 128, 100, 0
		task.Require(&api.Resources{CPU: &cpu, MemoryMB: &memory})
		group := api.NewTaskGroup(fmt.Sprintf("code-%d", code), 1)
		group.RestartPolicy = &api.RestartPolicy{Attempts: &never}
		group.ReschedulePolicy = &api.ReschedulePolicy{Attempts: &never}
		size := 10
		group.EphemeralDisk = &api.EphemeralDisk{SizeMB: &size}
		task.LogConfig = &api.LogConfig{MaxFiles: &[]int{1}[0], MaxFileSizeMB: &[]int{1}[0]}
		job.AddTaskGroup(group.AddTask(task))
	}
	began := time.Now()
	_, _, err = client.Jobs().Register(job, nil)
	must.NoError(t, err)
	for group, wanted := range map[string]struct {
		status string
		code   int
	}{"code-0": {api.AllocClientStatusComplete, 0}, "code-7": {api.AllocClientStatusFailed, 7}} {
		var found *api.Allocation
		eventually(t, 2*bootLimit, "the allocation of "+group+" is "+wanted.status, func() (bool, string) {
			found = nil
			list, _, err := client.Jobs().Allocations("codes", true, nil)
			if err != nil {
				return false, err.Error()
			}
			for _, stub := range list {
				if stub.TaskGroup == group {
					if found, _, err = client.Allocations().Info(stub.ID, nil); err != nil {
						return false, err.Error()
					}
				}
			}
			if found == nil {
				return false, "no allocation"
			}
			return found.ClientStatus == wanted.status, events(found)
		})
		must.Eq(t, wanted.code, exitCode(t, found))
	}
	t.Logf("both exit codes seen after %.2f s", time.Since(began).Seconds())
}

func events(alloc *api.Allocation) string {
	text := alloc.ClientStatus
	for _, state := range alloc.TaskStates {
		for _, event := range state.Events {
			text += "; " + event.Type + ": " + event.DisplayMessage
		}
	}
	return text
}

func exitCode(t *testing.T, alloc *api.Allocation) int {
	t.Helper()
	for _, event := range alloc.TaskStates["vm"].Events {
		if event.Type == api.TaskTerminated {
			return event.ExitCode
		}
	}
	t.Fatalf("no exit: %s", events(alloc))
	return -1
}
