//! What the fuzz targets check. Most of it lives beside the tests of the crate in question, which run it over the
//! committed seeds.

pub mod json;
pub mod memory;

#[path = "../../factory-core/tests/machines/alter.rs"]
mod alter;
#[path = "../../factory-core/tests/machines/ceremony/mod.rs"]
pub mod ceremony;
#[path = "../../factory-core/tests/machines/close/mod.rs"]
pub mod close;
#[path = "../../factory-core/tests/common/mod.rs"]
mod common;
#[path = "../../factory-core/tests/machines/oracle.rs"]
mod oracle;
#[path = "../../factory-core/tests/machines/script.rs"]
mod script;
mod settings;
#[path = "../../bolt-tlv/tests/common/oracle.rs"]
pub mod wire;

pub use ldk_node_ext::fuzzing as node;
pub use settings::settings;
