//! Are our tables of nftables still what we made them?
//!
//! Others use nftables too, and `flush ruleset` takes everybody's tables. The kernel counts each transaction: while that number
//! is the one after ours, nobody did anything. Otherwise our chains are looked at, as handles and numbers of references; what
//! they say is never read.

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{KernelError, Netlink, attributes, text};

// Numbers of linux/netfilter/nf_tables.h and nfnetlink.h.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_USE: u16 = 6;
const GENERIC_HEADER: usize = 4;

/// Name of both of our tables.
const TABLE: &str = "netd";

struct Ask(u16);

impl NetlinkSerializable for Ask {
    fn message_type(&self) -> u16 {
        NFNL_SUBSYS_NFTABLES << 8 | self.0
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // Any family, version 0, no resource.
        buffer.fill(0);
    }
}

/// Handles and references of our chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Chains {
    number: u64,
    handles: u64,
    references: u64,
}

/// What was seen of our tables.
#[derive(Debug)]
pub(crate) struct Tables {
    netlink: Netlink,
    /// Number of the last transaction after which they were what we made them.
    seen: Option<u32>,
    /// Our chains then, where they were looked at.
    chains: Option<Chains>,
}

/// What became of our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// They are what we made them.
    Whole,
    /// They may be anything.
    Changed,
}

impl Tables {
    pub(crate) fn open() -> std::io::Result<Self> {
        Ok(Self {
            netlink: Netlink::open(NETLINK_NETFILTER)?,
            seen: None,
            chains: None,
        })
    }

    /// Number of the last transaction; to be asked before one of ours.
    pub(crate) fn before(&mut self) -> Option<u32> {
        self.generation()
    }

    /// After a transaction of ours, which declared everything or a part. `before` is the number before it. Where somebody came
    /// between, the number seen stays another one, and the next look finds that.
    pub(crate) fn changed(&mut self, before: Option<u32>, everything: bool) {
        let now = self.generation();
        let alone = before.map(|before| before.wrapping_add(1)) == now;
        if alone && (everything || self.seen == before) {
            self.seen = now;
        } else if everything {
            self.seen = None;
        }
        self.chains = None;
    }

    /// They are not what they should be.
    pub(crate) fn doubt(&mut self) {
        self.seen = None;
        self.chains = None;
    }

    /// Looks.
    pub(crate) fn look(&mut self) -> Found {
        let Some(now) = self.generation() else {
            return Found::Changed;
        };
        if self.seen == Some(now) {
            if self.chains.is_none() {
                self.chains = self.chains();
            }
            return Found::Whole;
        }
        let chains = self.chains();
        if chains.is_some() && chains == self.chains {
            self.seen = Some(now);
            return Found::Whole;
        }
        Found::Changed
    }

    fn generation(&mut self) -> Option<u32> {
        let mut number = None;
        let asked = self.netlink.get(Ask(NFT_MSG_GETGEN), &mut |kind, payload| {
            if kind & 0xff == NFT_MSG_NEWGEN {
                let values = attributes(payload.get(GENERIC_HEADER..).unwrap_or_default());
                let mut ids = values.filter(|(kind, _)| *kind == NFTA_GEN_ID);
                number = ids.find_map(|(_, id)| Some(u32::from_be_bytes(id.try_into().ok()?)));
            }
        });
        asked.ok().and(number)
    }

    fn chains(&mut self) -> Option<Chains> {
        let mut chains = Chains::default();
        let told: Result<bool, KernelError> =
            self.netlink.dump(Ask(NFT_MSG_GETCHAIN), &mut |kind, payload| {
                if kind & 0xff == NFT_MSG_NEWCHAIN {
                    add(&mut chains, payload.get(GENERIC_HEADER..).unwrap_or_default());
                }
            });
        matches!(told, Ok(false)).then_some(chains)
    }
}

fn add(chains: &mut Chains, chain: &[u8]) {
    let (mut ours, mut handle, mut references) = (false, 0, 0);
    for (kind, value) in attributes(chain) {
        match kind {
            NFTA_CHAIN_TABLE => ours = text(value) == TABLE,
            NFTA_CHAIN_HANDLE => handle = value.try_into().map_or(0, u64::from_be_bytes),
            NFTA_CHAIN_USE => references = value.try_into().map_or(0, u32::from_be_bytes),
            _ => {}
        }
    }
    if ours {
        chains.number += 1;
        chains.handles = chains.handles.wrapping_add(handle);
        chains.references = chains.references.wrapping_add(u64::from(references));
    }
}
