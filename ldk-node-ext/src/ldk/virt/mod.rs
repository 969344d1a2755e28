//! The virtual funding outpoint: what lets a factory change its state under a live channel.

#[cfg(test)]
pub(crate) mod testing;
