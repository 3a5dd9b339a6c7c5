package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// traces are what the host shows of the tasks of one plugin, each as a line: what a task leaves behind is what is here
// afterwards and was not before.
type traces struct {
	// Living processes.
	monitors, supervisors, hypervisors []process
	// Control group leaves, sockets, mounts, user id leases, and everything in the state and the run directory.
	things []string
}

// tracesOf looks at everything that bears one of the names: the plugin's directory, or an allocation's id.
func (p *plugin) tracesOf(names ...string) traces {
	var found traces
	mine := func(text string) bool {
		for _, name := range names {
			if strings.Contains(text, name) {
				return true
			}
		}
		return false
	}
	add := func(kind, text string) { found.things = append(found.things, kind+" "+text) }

	shims := map[int]bool{}
	var processes []process
	for _, one := range ours() {
		if mine(one.cmdline) && one.comm != pluginFile[:min(len(pluginFile), 15)] {
			processes = append(processes, one)
			shims[one.pid] = one.comm == "microvm-shim"
		}
	}
	for _, one := range processes {
		switch {
		case !shims[one.pid]:
			found.hypervisors = append(found.hypervisors, one)
		case shims[one.parent]:
			found.supervisors = append(found.supervisors, one)
		default:
			found.monitors = append(found.monitors, one)
		}
	}

	for _, root := range []string{p.options["state_dir"].(string), p.options["run_dir"].(string)} {
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return nil // gone meanwhile
			}
			if entry.IsDir() && entry.Name() == "log" {
				return filepath.SkipDir
			}
			// What lies right in them is the plugin's own, made once.
			if inside, _ := filepath.Rel(root, path); entry.IsDir() && !strings.Contains(inside, "/") {
				return nil
			}
			text := path
			if target, err := os.Readlink(path); err == nil {
				text += " -> " + target
			}
			if mine(text) {
				add("file", text)
			}
			return nil
		})
	}
	// On version 1 a group per controller, on version 2 one: `…/nomad/<alloc>.<task>/vm`, `….scope/vm`.
	for _, pattern := range []string{"/sys/fs/cgroup/*/nomad/*/*", "/sys/fs/cgroup/nomad.slice/*/*/*"} {
		leaves, _ := filepath.Glob(pattern)
		for _, leaf := range leaves {
			if info, err := os.Stat(leaf); err == nil && info.IsDir() && mine(leaf) {
				add("cgroup", leaf)
			}
		}
	}
	for kind, table := range map[string]string{"socket": "/proc/net/unix", "mount": "/proc/self/mounts"} {
		text, _ := os.ReadFile(table)
		for line := range strings.SplitSeq(string(text), "\n") {
			if fields := strings.Fields(line); mine(line) && kind == "socket" {
				add(kind, fields[len(fields)-1])
			} else if mine(line) {
				add(kind, line)
			}
		}
	}
	sort.Strings(found.things)
	return found
}

// of is the part that bears a name.
func (found traces) of(name string) traces {
	var part traces
	for _, list := range []struct{ from, to *[]process }{
		{&found.monitors, &part.monitors},
		{&found.supervisors, &part.supervisors},
		{&found.hypervisors, &part.hypervisors},
	} {
		for _, one := range *list.from {
			if strings.Contains(one.cmdline, name) {
				*list.to = append(*list.to, one)
			}
		}
	}
	for _, thing := range found.things {
		if strings.Contains(thing, name) {
			part.things = append(part.things, thing)
		}
	}
	return part
}

// running says why these are not those of exactly one running VM, or nothing.
func (found traces) running() string {
	if len(found.monitors) == 1 && len(found.supervisors) == 1 && len(found.hypervisors) == 1 {
		return ""
	}
	return "not one VM: " + found.text()
}

// dead says which processes there are, or nothing.
func (found traces) dead() string {
	if len(found.monitors)+len(found.supervisors)+len(found.hypervisors) == 0 {
		return ""
	}
	return "processes: " + found.text()
}

// since says in which way this differs from before, or nothing.
func (found traces) since(before traces) string {
	if text := found.dead(); text != "" {
		return text
	}
	had, have := map[string]bool{}, map[string]bool{}
	for _, thing := range before.things {
		had[thing] = true
	}
	var differs []string
	for _, thing := range found.things {
		have[thing] = true
		if !had[thing] {
			differs = append(differs, "left: "+thing)
		}
	}
	for thing := range had {
		if !have[thing] {
			differs = append(differs, "missing: "+thing)
		}
	}
	return strings.Join(differs, "; ")
}

func (found traces) text() string {
	return fmt.Sprintf("monitors %v, supervisors %v, hypervisors %v, and %v",
		found.monitors, found.supervisors, found.hypervisors, found.things)
}

// descriptors is how many files a process has open.
func descriptors(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}

// taskKey is the name under which the plugin keeps a task: the last part tells the starts of an allocation apart.
func taskKey(alloc, id string) string {
	sum := sha256.Sum256([]byte(id))
	return alloc + "." + hex.EncodeToString(sum[:])[:8]
}
