//! Payments to offers whose invoice has been asked for, one record each.
//!
//! Such a payment has an id of ours first, and a hash only with the payee's answer. From then on it is a payment like any
//! other, under its hash in [`super::payments`]; the record here says under which. What fails before stays here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use lightning::ln::channelmanager::PaymentId;
use lightning::types::payment::PaymentHash;
use serde::{Deserialize, Serialize};

use super::{records, Store};
use crate::api::{Direction, Payment, PaymentStatus};
use crate::error::Error;
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "payment_requests";
const VERSION: u32 = 1;

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Answer {
    /// Asked for.
    Awaited,
    /// The invoice has come; it is paid, or will be.
    Invoice {
        /// Its payment hash, hex.
        payment_hash: String,
    },
    /// No invoice, or one that is not paid.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A payment to an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The offer's id, hex.
    pub offer_id: String,
    /// What is to arrive, msat.
    pub amount_msat: u64,
    /// The payee's answer.
    #[serde(flatten)]
    pub answer: Answer,
    /// The last change, Unix seconds.
    pub updated_at: u64,
}

impl Request {
    /// The hash of the invoice that has come.
    pub fn hash(&self) -> Option<PaymentHash> {
        let Answer::Invoice { payment_hash } = &self.answer else { return None };
        let mut hash = [0; 32];
        hex::decode_to_slice(payment_hash, &mut hash).ok().map(|()| PaymentHash(hash))
    }

    /// As the payment that it is while it has no hash.
    pub fn payment(&self, id: &PaymentId) -> Payment {
        let (status, failure) = match &self.answer {
            Answer::Awaited | Answer::Invoice { .. } => (PaymentStatus::Pending, None),
            Answer::Failed { reason } => (PaymentStatus::Failed, Some(reason.clone())),
        };
        Payment {
            payment_id: Some(hex::encode(id.0)),
            offer_id: Some(self.offer_id.clone()),
            amount_msat: self.amount_msat,
            status,
            failure,
            updated_at: self.updated_at,
            ..Payment::new(String::new(), Direction::Out)
        }
    }
}

/// All requests. Updates are serialized by a lock, so none is lost.
#[derive(Debug)]
pub struct Requests {
    store: Arc<Store>,
    lock: Mutex<()>,
}

impl Requests {
    /// Over the node's store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, lock: Mutex::new(()) }
    }

    /// Records a new one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn begin(&self, id: &PaymentId, offer_id: String, amount_msat: u64) -> Result<(), Error> {
        let _guard = lock(&self.lock);
        let request = Request { offer_id, amount_msat, answer: Answer::Awaited, updated_at: unix_now() };
        records::put(&*self.store, NAMESPACE, &hex::encode(id.0), VERSION, &request)
    }

    /// Changes a request's answer, if there is such a request: `change` gets the present one and says what it becomes.
    /// Returns the request as it is then.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn update(
        &self,
        id: &PaymentId,
        change: impl FnOnce(&Answer) -> Option<Answer>,
    ) -> Result<Option<Request>, Error> {
        let _guard = lock(&self.lock);
        let Some(mut request) = self.get(id)? else { return Ok(None) };
        if let Some(answer) = change(&request.answer) {
            request.answer = answer;
            request.updated_at = unix_now();
            records::put(&*self.store, NAMESPACE, &hex::encode(id.0), VERSION, &request)?;
        }
        Ok(Some(request))
    }

    /// Ends a request to which there is no invoice yet. True if it was one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn fail_awaited(&self, id: &PaymentId, reason: &str) -> Result<bool, Error> {
        let mut failed = false;
        self.update(id, |answer| {
            failed = *answer == Answer::Awaited;
            failed.then(|| Answer::Failed { reason: reason.to_owned() })
        })?;
        Ok(failed)
    }

    /// At start: requests that LDK does not know were never sent. They become failed. Returns how many.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn fail_unknown(&self, known: &HashSet<PaymentHash>) -> Result<usize, Error> {
        let mut failed = 0;
        for (id, request) in self.all()? {
            if request.answer == Answer::Awaited && !known.contains(&PaymentHash(id.0)) {
                failed += usize::from(self.fail_awaited(&id, "the node stopped before it was sent")?);
            }
        }
        Ok(failed)
    }

    /// One by its id.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get(&self, id: &PaymentId) -> Result<Option<Request>, Error> {
        records::get(&*self.store, NAMESPACE, &hex::encode(id.0), VERSION)
    }

    fn all(&self) -> Result<Vec<(PaymentId, Request)>, Error> {
        let read = |(key, request): (String, Request)| {
            let mut id = [0; 32];
            let known = hex::decode_to_slice(&key, &mut id);
            known
                .map(|()| (PaymentId(id), request))
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })
        };
        records::all(&*self.store, NAMESPACE, VERSION)?.into_iter().map(read).collect()
    }

    /// Those without an invoice, as payments.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn unanswered(&self) -> Result<Vec<Payment>, Error> {
        let all = self.all()?;
        let open = all.iter().filter(|(_, request)| !matches!(request.answer, Answer::Invoice { .. }));
        Ok(open.map(|(id, request)| request.payment(id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_end() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(Arc::new(Store::open(&dir.path().join("db")).unwrap()));
        let [asked, answered, lost] = [1, 2, 3].map(|n| PaymentId([n; 32]));
        for id in [&asked, &answered, &lost] {
            requests.begin(id, "aa".into(), 5000).unwrap();
        }
        let hash = PaymentHash([9; 32]);
        let invoice = || Answer::Invoice { payment_hash: hex::encode(hash.0) };
        let now = requests.update(&answered, |_| Some(invoice())).unwrap().unwrap();
        assert_eq!(now.hash(), Some(hash));
        assert!(!requests.fail_awaited(&answered, "too late").unwrap());
        let known = HashSet::from([PaymentHash(asked.0)]);
        assert_eq!(requests.fail_unknown(&known).unwrap(), 1);
        assert!(requests.fail_awaited(&asked, "no answer").unwrap());
        assert!(!requests.fail_awaited(&asked, "again").unwrap());

        let mut told = requests.unanswered().unwrap();
        told.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        let reasons: Vec<_> = told.iter().filter_map(|p| p.failure.as_deref()).collect();
        assert_eq!(reasons, ["no answer", "the node stopped before it was sent"]);
        assert!(told.iter().all(|p| p.payment_hash.is_empty() && p.amount_msat == 5000));
        assert_eq!(requests.update(&PaymentId([4; 32]), |_| None).unwrap(), None);
    }
}
