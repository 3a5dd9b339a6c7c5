package conformance

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"sort"
	"strings"
	"testing"

	_ "github.com/hashicorp/go-plugin" // registers package `plugin`
	_ "github.com/hashicorp/nomad/plugins/base/proto"
	_ "github.com/hashicorp/nomad/plugins/drivers/proto"
	_ "github.com/hashicorp/nomad/plugins/shared/hclspec"
	_ "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"github.com/shoenig/test/must"
	_ "google.golang.org/genproto/googleapis/rpc/status" // carries RecoverableError
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// rows are a table's rows as JSON text, by the full name of their message, enum or service. The text compares across
// languages: every cell is a number, a name, a bool or null.
type rows map[string][]string

type tables struct {
	messages, enums, services rows
}

// TestConformanceDescriptors compares our protocol with the one that the real module registers in this process.
func TestConformanceDescriptors(t *testing.T) {
	program := need(t, "STEPPE_DESCRIPTOR_ROWS", "the program descriptor-rows of the crate nomad-proto")
	out, err := exec.Command(program).Output()
	must.NoError(t, err)
	var printed struct {
		Messages, Enums, Services map[string][]json.RawMessage
		Extras                    []struct{ Item, Since string }
	}
	must.NoError(t, json.Unmarshal(out, &printed))

	real := registered()
	wanted := 0
	extras := map[string]bool{} // item → seen
	for _, extra := range printed.Extras {
		extras[extra.Item] = false
	}
	for _, table := range []struct {
		kind string
		real rows
		ours rows
	}{
		{"message", real.messages, texts(t, printed.Messages)},
		{"enum", real.enums, texts(t, printed.Enums)},
		{"service", real.services, texts(t, printed.Services)},
	} {
		for _, owner := range names(table.real) {
			ours, known := table.ours[owner]
			if !known {
				t.Errorf("%s %s is in the module, not in ours", table.kind, owner)
				continue
			}
			for _, row := range table.real[owner] {
				wanted++
				if !has(ours, row) {
					t.Errorf("%s %s: the module has %s, ours are %s", table.kind, owner, row, strings.Join(ours, " "))
				}
			}
		}
		for _, owner := range names(table.ours) {
			real, known := table.real[owner]
			if !known {
				if _, listed := extras[owner]; !listed {
					t.Errorf("%s %s is ours, not in the module, and no extra", table.kind, owner)
				}
				extras[owner] = true
			}
			for _, row := range table.ours[owner] {
				item := owner + "." + nameIn(t, table.kind, row)
				if has(real, row) {
					continue
				}
				if _, listed := extras[item]; !listed && known {
					t.Errorf("%s is ours as %s, not in the module, and no extra", item, row)
				}
				extras[item] = true
			}
		}
	}
	for item, seen := range extras {
		if !seen {
			t.Errorf("extra %s is in the module by now, or is not in ours", item)
		}
	}
	if wanted < 300 {
		t.Errorf("the module registered only %d rows: an import is missing in this test", wanted)
	}
	t.Logf("%d rows of the module are in ours; extras: %s", wanted, names(extras))
}

// registered is the real module's protocol: what it has registered of the packages that a driver speaks.
func registered() tables {
	all := tables{rows{}, rows{}, rows{}}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		switch file.Package() {
		case "hashicorp.nomad.plugins.base.proto", "hashicorp.nomad.plugins.drivers.proto",
			"hashicorp.nomad.plugins.shared.hclspec", "hashicorp.nomad.plugins.shared.structs", "plugin", "google.rpc":
		default:
			return true
		}
		// More of google.rpc is registered than a driver's errors need.
		if file.Package() == "google.rpc" && file.Path() != "google/rpc/status.proto" {
			return true
		}
		all.addEnums(file.Enums())
		all.addMessages(file.Messages())
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			list := []string{}
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				list = append(list, text(
					method.Name(),
					side(method.IsStreamingClient(), method.Input()),
					side(method.IsStreamingServer(), method.Output()),
				))
			}
			all.services[string(service.FullName())] = list
		}
		return true
	})
	return all
}

func (all tables) addMessages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		message := messages.Get(i)
		if message.IsMapEntry() {
			continue // folded into the label of its field
		}
		list := []string{}
		for j := range message.Fields().Len() {
			list = append(list, fieldRow(message.Fields().Get(j)))
		}
		for j := range message.ReservedRanges().Len() {
			reserved := message.ReservedRanges().Get(j)
			for number := reserved[0]; number < reserved[1]; number++ {
				list = append(list, text(number, nil, "reserved", nil, nil, false))
			}
		}
		all.messages[string(message.FullName())] = list
		all.addEnums(message.Enums())
		all.addMessages(message.Messages())
	}
}

func (all tables) addEnums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		enum := enums.Get(i)
		list := []string{}
		for j := range enum.Values().Len() {
			value := enum.Values().Get(j)
			list = append(list, text(value.Number(), value.Name()))
		}
		all.enums[string(enum.FullName())] = list
	}
}

// fieldRow is number, name, label, type, oneof, packed.
func fieldRow(field protoreflect.FieldDescriptor) string {
	label, kind := "one", kindName(field)
	switch {
	case field.IsMap():
		label, kind = "map", kindName(field.MapKey())+", "+kindName(field.MapValue())
	case field.IsList():
		label = "repeated"
	case field.HasOptionalKeyword():
		label = "optional"
	}
	var oneof any
	if of := field.ContainingOneof(); of != nil && !of.IsSynthetic() {
		oneof = of.Name()
	}
	return text(field.Number(), field.Name(), label, kind, oneof, field.IsPacked())
}

func kindName(field protoreflect.FieldDescriptor) string {
	switch field.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return string(field.Message().FullName())
	case protoreflect.EnumKind:
		return string(field.Enum().FullName())
	default:
		return field.Kind().String()
	}
}

func side(streams bool, message protoreflect.MessageDescriptor) string {
	if streams {
		return "stream " + string(message.FullName())
	}
	return string(message.FullName())
}

// text is a row as compact JSON.
func text(cells ...any) string {
	out, err := json.Marshal(cells)
	if err != nil {
		panic(err) // numbers, names, bools and nil always encode
	}
	return string(out)
}

// texts makes printed rows compact.
func texts(t *testing.T, table map[string][]json.RawMessage) rows {
	t.Helper()
	all := rows{}
	for owner, list := range table {
		all[owner] = []string{}
		for _, row := range list {
			var cells []any
			must.NoError(t, json.Unmarshal(row, &cells))
			all[owner] = append(all[owner], text(cells...))
		}
	}
	return all
}

// nameIn is the name in a row: services begin with it, the others with a number. A reserved number has none.
func nameIn(t *testing.T, kind, row string) string {
	t.Helper()
	var cells []any
	must.NoError(t, json.Unmarshal([]byte(row), &cells))
	at := 1
	if kind == "service" {
		at = 0
	}
	must.Greater(t, at, len(cells))
	if cells[at] == nil {
		return fmt.Sprint(cells[0])
	}
	return fmt.Sprint(cells[at])
}

func has(list []string, row string) bool {
	for _, other := range list {
		if other == row {
			return true
		}
	}
	return false
}

func names[V any](table map[string]V) []string {
	list := []string{}
	for name := range table {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}
