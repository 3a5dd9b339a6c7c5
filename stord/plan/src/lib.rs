//! Which volumes and images does a host have, who may write to them, and who next?
//!
//! Pure: texts, records and what was found come in as values; changes and refusals go out as values. Nothing here reads a clock,
//! a file or a socket.
//!
//! * [`config`]: what the operator said, and whether it is right;
//! * [`name`], [`size`]: what volumes are called, and how large they are;
//! * [`image`]: which disk can become an image;
//! * [`lease`]: who holds a volume, and how another one gets it without there ever being two who write.

pub mod config;
pub mod image;
pub mod lease;
pub mod name;
pub mod size;
