package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/base/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

const (
	soakTasks = 5
	// What the host may take to show the end of an operation: a shim holds the logs for their reader up to 5 s.
	soakLimit = 10 * time.Second
)

// ending is what Nomad is told of an end. The code and the signal do not tell all of them apart: the sentence does.
type ending struct {
	code, signal int
	sentence     string
}

var (
	endPoweredOff  = ending{0, 0, `powered off after the power button`}
	endSwitchedOff = ending{137, 9, `did not power off in time`}
	endKilled      = ending{137, 9, `ended from outside by signal 9`}
	endTerminated  = ending{1, 0, `signal from outside told QEMU to quit`}
	endLost        = ending{1, 0, `shim-lost`}
)

// A strike is what somebody does to a virtual machine from outside, and what must then be known of it.
var strikes = []struct {
	what   string
	victim func(traces) []process
	signal unix.Signal
	end    ending
}{
	{"kill -9 of the monitor", func(found traces) []process { return found.monitors }, unix.SIGKILL, endLost},
	{"kill -9 of the supervisor", func(found traces) []process { return found.supervisors }, unix.SIGKILL, endLost},
	{"kill -9 of QEMU", func(found traces) []process { return found.hypervisors }, unix.SIGKILL, endKilled},
	{"SIGTERM of QEMU", func(found traces) []process { return found.hypervisors }, unix.SIGTERM, endTerminated},
}

// member is one task of one allocation, and what must be true of it.
type member struct {
	vm    *vm
	state memberState
	// The guest does not obey the power button.
	deaf    bool
	handle  *drivers.TaskHandle
	end     ending
	results <-chan *drivers.ExitResult
	// What WaitTask answered since the plugin's start.
	result *drivers.ExitResult
}

type memberState string

const (
	gone  memberState = "gone"
	runs  memberState = "runs"
	ended memberState = "ended"
)

// soak is the shadow model, beside the real thing.
type soak struct {
	t       *testing.T
	random  *rand.Rand
	plugin  *plugin
	names   []string
	members []*member

	number uint64 // of the operation

	lock sync.Mutex
	said map[string][]string // what events said, by task id
}

// TestSoakRandom does at random what operators, agents and accidents do, and after each step compares the host with what it
// must be.
func TestSoakRandom(t *testing.T) {
	seed := number(t, "STEPPE_SEED", uint64(time.Now().UnixNano()))
	operations := number(t, "STEPPE_OPERATIONS", 100)
	t.Logf("seed %d, %d operations (STEPPE_SEED=%d repeats them)", seed, operations, seed)
	initCgroups(t)
	p := startPluginWith(t, pluginDir(t), stubOptions(t))
	s := &soak{t: t, random: rand.New(rand.NewPCG(seed, 0)), plugin: p, said: map[string][]string{}}
	s.names = []string{filepath.Dir(p.options["state_dir"].(string))}
	for i := range soakTasks {
		m := &member{vm: newVM(p, fmt.Sprintf("task-%d", i), stub("")), state: gone}
		s.members = append(s.members, m)
		s.names = append(s.names, m.vm.config.AllocID)
	}
	s.listen()
	before := p.tracesOf(s.names...)
	must.Eq(t, "", before.dead())

	began := time.Now()
	counts := map[string]int{}
	for i := range operations {
		counts[s.operate(i+1)]++
		s.compare()
		if t.Failed() {
			t.FailNow() // the model is wrong from here on
		}
	}
	for _, kind := range names(counts) {
		t.Logf("%4d × %s", counts[kind], kind)
	}
	for _, m := range s.members {
		must.NoError(t, p.driver.DestroyTask(m.vm.config.ID, true))
		m.forget()
	}
	s.compare()
	took := time.Since(began)
	eventually(t, soakLimit, "the host is as before", func() (bool, string) {
		text := p.tracesOf(s.names...).since(before)
		return text == "", text
	})
	open := descriptors(pid(t, p.instance))
	p.crash()
	p.relaunch()
	s.listen()
	// From its first start on a plugin keeps one more: an empty network namespace.
	fresh := descriptors(pid(t, p.instance)) + 1
	must.LessEq(t, fresh, open, must.Sprint("descriptors, of a fresh plugin and of the last"))
	t.Logf("%.1f s, %d descriptors", took.Seconds(), open)
	p.instance.Kill()
	noneLeft(t, killLimit)
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	value, err := strconv.ParseUint(text, 10, 64)
	must.NoError(t, err, must.Sprint(variable))
	return value
}

// say prints what is about to be done.
func (s *soak) say(format string, values ...any) {
	s.t.Logf("%4d  %s", s.number, fmt.Sprintf(format, values...))
}

func (m *member) forget() {
	m.state, m.results, m.result, m.handle = gone, nil, nil, nil
}

// listen collects what is said from now on, by the plugin of now.
func (s *soak) listen() {
	events, err := s.plugin.driver.TaskEvents(context.Background())
	must.NoError(s.t, err)
	go func() {
		for event := range events {
			s.lock.Lock()
			s.said[event.TaskID] = append(s.said[event.TaskID], event.Message)
			s.lock.Unlock()
		}
	}()
}

// one picks a member in one of the states, or nil.
func (s *soak) one(states ...memberState) *member {
	var some []*member
	for _, m := range s.members {
		if slices.Contains(states, m.state) {
			some = append(some, m)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[s.random.IntN(len(some))]
}

// operate does one thing that is possible now, and returns its kind.
func (s *soak) operate(number uint64) string {
	for {
		kinds := []struct {
			weight int
			kind   string
			do     func() bool
		}{
			{30, "start", s.start},
			{5, "start over", s.startOver},
			{12, "two starts of two tasks at once", s.startTwo},
			{6, "two starts of one task at once", s.startTwice},
			{5, "start, and kill -9 of the plugin meanwhile", s.startInterrupted},
			{12, "stop", s.stop},
			{14, "destroy", s.destroy},
			{12, "strike", s.strike},
			{8, "kill -9 of the plugin", s.crash},
		}
		total := 0
		for _, one := range kinds {
			total += one.weight
		}
		dice := s.random.IntN(total)
		for _, one := range kinds {
			if dice -= one.weight; dice < 0 {
				s.number = number
				if one.do() {
					return one.kind
				}
				break
			}
		}
	}
}

// prepare chooses a guest and makes what Nomad makes before each start: a new id, and a running log collection.
func (s *soak) prepare(m *member) string {
	words := ""
	m.deaf, m.end = false, ending{}
	switch dice := s.random.IntN(10); {
	case dice < 2:
		m.deaf, words = true, "stub.ignore-poweroff"
	case dice < 4:
		code := s.random.IntN(128)
		m.end = ending{code, 0, fmt.Sprintf(`exit code %d\b`, code)}
		words = fmt.Sprintf("stub.exit=%d", code)
	}
	encode(s.t, s.plugin.driver, m.vm.config, stub(words))
	m.newID()
	m.vm.collectLogs()
	return strings.TrimSpace(m.vm.config.Name + " " + words)
}

func (m *member) newID() {
	m.vm.config.ID = m.vm.config.AllocID + "/" + m.vm.config.Name + "/" + uuid.Short()
}

// begun enters a start that succeeded.
func (s *soak) begun(m *member, handle *drivers.TaskHandle) {
	m.handle = restored(s.t, handle)
	m.state = runs
	if m.end.sentence != "" {
		m.state = ended // by itself, soon
	}
	s.wait(m)
}

func (s *soak) wait(m *member) {
	m.result = nil
	m.results = m.vm.wait(context.Background())
}

func (s *soak) start() bool {
	m := s.one(gone)
	if m == nil {
		return false
	}
	s.say("start %s", s.prepare(m))
	handle, _, err := s.plugin.driver.StartTask(m.vm.config)
	must.NoError(s.t, err)
	s.begun(m, handle)
	return true
}

// startOver is an agent that died, forgot what it had started, and starts the task of the same allocation anew.
func (s *soak) startOver() bool {
	m := s.one(runs, ended)
	if m == nil {
		return false
	}
	was := m.vm.config.ID
	s.say("start over, over one that %s: %s", m.state, s.prepare(m))
	handle, _, err := s.plugin.driver.StartTask(m.vm.config)
	must.NoError(s.t, err)
	_, err = s.plugin.driver.InspectTask(was)
	notFound(s.t, err)
	s.begun(m, handle)
	return true
}

func (s *soak) startTwo() bool {
	first := s.one(gone)
	if first == nil {
		return false
	}
	first.state = runs // so that it is not picked again
	second := s.one(gone)
	first.state = gone
	if second == nil {
		return false
	}
	s.say("start %s and %s", s.prepare(first), s.prepare(second))
	handles := make([]*drivers.TaskHandle, 2)
	each(s.t, []*vm{first.vm, second.vm}, func(i int, v *vm) (err error) {
		handles[i], _, err = s.plugin.driver.StartTask(v.config)
		return err
	})
	s.begun(first, handles[0])
	s.begun(second, handles[1])
	return true
}

// startTwice asks for the same task twice at once, by one id or by two. One virtual machine comes of it, and one id has it.
func (s *soak) startTwice() bool {
	m := s.one(gone)
	if m == nil {
		return false
	}
	same := s.random.IntN(2) == 0
	s.say("start %s twice at once, same id %t", s.prepare(m), same)
	other := *m.vm
	config := *m.vm.config
	other.config = &config
	if !same {
		config.ID += "2"
	}
	handles := make([]*drivers.TaskHandle, 2)
	failures := make([]error, 2)
	both := []*vm{m.vm, &other}
	each(s.t, both, func(i int, v *vm) error {
		handles[i], _, failures[i] = s.plugin.driver.StartTask(v.config)
		return nil
	})
	var winners []int
	for i, v := range both {
		if _, err := s.plugin.driver.InspectTask(v.config.ID); err == nil {
			must.NoError(s.t, failures[i])
			winners = append(winners, i)
		}
	}
	if same {
		winners = winners[:min(len(winners), 1)]
	}
	must.Len(s.t, 1, winners, must.Sprint("of two starts one has the VM; they answered ", failures))
	m.vm.config.ID = both[winners[0]].config.ID
	s.begun(m, handles[winners[0]])
	return true
}

// startInterrupted kills the plugin at some moment of a start; Nomad then asks the next one, once, for the same start.
func (s *soak) startInterrupted() bool {
	m := s.one(gone)
	if m == nil {
		return false
	}
	after := time.Duration(s.random.IntN(80)) * time.Millisecond
	s.say("start %s, and kill -9 of the plugin after %s", s.prepare(m), after)
	type answer struct {
		handle *drivers.TaskHandle
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		handle, _, err := s.plugin.driver.StartTask(m.vm.config)
		answers <- answer{handle, err}
	}()
	time.Sleep(after)
	s.plugin.crash()
	first := <-answers
	if first.err == nil {
		s.relaunch()
		must.NoError(s.t, s.plugin.driver.RecoverTask(first.handle))
	} else {
		must.ErrorIs(s.t, first.err, structs.ErrPluginShutdown)
		s.relaunch()
		var err error
		first.handle, _, err = s.plugin.driver.StartTask(m.vm.config)
		must.NoError(s.t, err)
	}
	s.begun(m, first.handle)
	return true
}

func (s *soak) stop() bool {
	m := s.one(gone, runs, runs, runs, runs, ended)
	if m == nil {
		return false
	}
	hard := s.random.IntN(4) == 0
	s.say("stop %s, which %s, deaf %t, at once %t", m.vm.config.Name, m.state, m.deaf, hard)
	signal, timeout, end := "", soakLimit, endPoweredOff
	if m.deaf {
		timeout, end = 50*time.Millisecond, endSwitchedOff
	}
	if hard {
		signal, end = "SIGKILL", endSwitchedOff
	}
	must.NoError(s.t, s.plugin.driver.StopTask(m.vm.config.ID, timeout, signal))
	if m.state == runs {
		m.state, m.end = ended, end
	}
	return true
}

func (s *soak) destroy() bool {
	m := s.one(gone, runs, runs, ended, ended, ended)
	if m == nil {
		return false
	}
	force := s.random.IntN(2) == 0
	s.say("destroy %s, which %s, by force %t", m.vm.config.Name, m.state, force)
	err := s.plugin.driver.DestroyTask(m.vm.config.ID, force)
	if m.state == runs && !force {
		must.ErrorContains(s.t, err, "running")
		return true
	}
	must.NoError(s.t, err)
	if m.results != nil && m.result == nil {
		_ = exited(s.t, m.results, soakLimit) // a result or an error, but an end
	}
	m.forget()
	return true
}

// strike hits a running virtual machine.
func (s *soak) strike() bool {
	m := s.one(runs)
	if m == nil {
		return false
	}
	strike := strikes[s.random.IntN(len(strikes))]
	victims := strike.victim(s.plugin.tracesOf(m.vm.config.AllocID))
	must.Len(s.t, 1, victims)
	s.say("%s of %s", strike.what, m.vm.config.Name)
	must.NoError(s.t, unix.Kill(victims[0].pid, strike.signal))
	m.state, m.end = ended, strike.end
	return true
}

// crash kills the plugin. What happens to the virtual machines meanwhile, its successor must find out.
func (s *soak) crash() bool {
	s.say("kill -9 of the plugin")
	s.plugin.crash()
	for s.random.IntN(2) == 0 && s.strike() {
	}
	s.relaunch()
	return true
}

// relaunch starts the next plugin, which gets back what the last one had.
func (s *soak) relaunch() {
	s.plugin.relaunch()
	s.listen()
	for _, m := range s.members {
		if m.state == gone {
			continue
		}
		must.NoError(s.t, s.plugin.driver.RecoverTask(m.handle))
		s.wait(m)
	}
}

// compare waits until the host, and the plugin's answers, are what the model says.
func (s *soak) compare() {
	s.t.Helper()
	eventually(s.t, soakLimit, "the host is as the model", func() (bool, string) {
		text := s.differences()
		return text == "", text
	})
}

func (s *soak) differences() string {
	found := s.plugin.tracesOf(s.names...)
	keys, leases := []string{}, 0
	for _, m := range s.members {
		config := m.vm.config
		if text := s.difference(m, found.of(config.AllocID)); text != "" {
			return config.Name + ", which " + string(m.state) + ": " + text
		}
		if m.state != gone {
			keys = append(keys, taskKey(config.AllocID, config.ID))
			leases++
		}
	}
	slices.Sort(keys)
	if kept := entries(s.plugin.options["state_dir"].(string), "tasks"); !slices.Equal(kept, keys) {
		return fmt.Sprintf("records %v, not %v", kept, keys)
	}
	if leased := entries(s.plugin.options["run_dir"].(string), "uids"); len(leased) != leases {
		return fmt.Sprintf("%d user ids are leased, not %d", len(leased), leases)
	}
	// By no name of ours, perhaps, but started by the plugin all the same.
	if all := len(found.monitors) + len(found.supervisors) + len(found.hypervisors) + 1; len(ours()) != all {
		return fmt.Sprintf("%d processes, not %d: %v", len(ours()), all, ours())
	}
	return ""
}

func (s *soak) difference(m *member, found traces) string {
	status, err := s.plugin.driver.InspectTask(m.vm.config.ID)
	switch m.state {
	case gone:
		if err == nil || !strings.Contains(err.Error(), drivers.ErrTaskNotFound.Error()) {
			return fmt.Sprintf("InspectTask says %+v, %v", status, err)
		}
		for _, thing := range found.things {
			if !strings.HasPrefix(thing, "mount ") {
				return "left: " + thing
			}
		}
		return found.dead()
	case runs:
		if err != nil || status.State != drivers.TaskStateRunning {
			return fmt.Sprintf("InspectTask says %+v, %v", status, err)
		}
		select {
		case result := <-m.results:
			s.t.Fatalf("WaitTask of %s, which runs, says %+v", m.vm.config.Name, result)
		default:
		}
		return found.running()
	default:
		if text := found.dead(); text != "" {
			return text
		}
		if err != nil || status.State != drivers.TaskStateExited {
			return fmt.Sprintf("InspectTask says %+v, %v", status, err)
		}
		if m.result == nil {
			select {
			case m.result = <-m.results:
			default:
				return "WaitTask says nothing"
			}
		}
		for _, result := range []*drivers.ExitResult{m.result, status.ExitResult} {
			if result.Err != nil || result.ExitCode != m.end.code || result.Signal != m.end.signal {
				return fmt.Sprintf("the result is %+v, not %+v", result, m.end)
			}
		}
		return s.unsaid(m)
	}
}

// unsaid is what was said of an end instead of what must be.
func (s *soak) unsaid(m *member) string {
	s.lock.Lock()
	defer s.lock.Unlock()
	said := s.said[m.vm.config.ID]
	sentence := regexp.MustCompile(m.end.sentence)
	if slices.ContainsFunc(said, sentence.MatchString) {
		return ""
	}
	return fmt.Sprintf("the events are %q, not %q", said, m.end.sentence)
}

// entries are the names in a directory, none where it is missing.
func entries(path ...string) []string {
	list := []string{}
	found, _ := os.ReadDir(filepath.Join(path...))
	for _, entry := range found {
		list = append(list, entry.Name())
	}
	return list
}
