//! Cooperative close (being written).
use super::stored::Factory;
use super::Service;
use crate::error::Error;
use crate::ldk::InstanceId;
use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::Payload;
use tokio::time::Instant;
pub(super) struct Closing;
impl Service {
    pub(super) async fn close_timers(&mut self, _now: Instant) {}
    pub(super) async fn close_message(&mut self, _p: PublicKey, _m: &Payload) -> bool {
        false
    }
    pub(super) async fn resume_close_with(&mut self, _c: PublicKey) {}
    pub(super) async fn close_command(&mut self, _id: InstanceId) -> Result<(), Error> {
        Err(Error::Conflict("not yet".into()))
    }
    pub(super) async fn run_close(&mut self, _id: &InstanceId) {}
    pub(super) async fn channel_shut(
        &mut self,
        _id: &InstanceId,
        _o: bitcoin::OutPoint,
        _l: Option<u64>,
        _c: Option<u64>,
    ) {
    }
    pub(super) fn is_closing(&self, _f: &Factory) -> bool {
        false
    }
    pub(super) fn close_phase(&self, _f: &Factory) -> String {
        String::new()
    }
}
