//! What is in our protocol and not yet in the module that the conformance test compares it with?

/// A message, field or method that a later Nomad brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extra {
    /// Full name: `package.Message`, `package.Message.field` or `package.Service.Method`.
    pub item: &'static str,
    /// The first version of Nomad that has it.
    pub since: &'static str,
}

/// All of them. Nomad 2.x can't be fetched as a Go module, so these were written from its source; an older agent
/// neither calls nor sends them. An entry goes when the module that the conformance test builds has the item.
pub const EXTRAS: &[Extra] = &[
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.Mount.request_name",
        since: "2.0.1",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.Driver.Init",
        since: "2.0.4",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.InitRequest",
        since: "2.0.4",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.InitResponse",
        since: "2.0.4",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.Driver.Shutdown",
        since: "2.0.4",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.ShutdownRequest",
        since: "2.0.4",
    },
    Extra {
        item: "hashicorp.nomad.plugins.drivers.proto.ShutdownResponse",
        since: "2.0.4",
    },
];
