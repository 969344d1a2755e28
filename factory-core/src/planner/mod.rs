//! What a set of parameters means for those who take part: times, counts, bytes and money.

pub mod limits;
pub(crate) mod timing;
