//! Join tokens: one use, one host, one provider address, and an end. Only a hash of the secret is stored.

use crate::{clock, engine::Engine, fault::Fault, pki};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use tenet_api::{
    client::JoinToken,
    rest::{ChangeItem, HostSpec, Join, Spec, Token, TokenRequest, WaitQuery},
};
use tenet_control::Happening;
use tenet_model::{HostName, Key};
use tenet_store::{Condition, Order, Txn};

/// Keys of tokens in the store: this and the secret's hash.
const TOKENS: &str = "/tenet/v1/token/";
/// Lifetime of a token if none is asked for, and the longest, in seconds.
const TTL: u64 = 3600;
const LONGEST_TTL: u64 = 30 * 86_400;

#[derive(Serialize, Deserialize)]
struct Stored {
    host: HostName,
    pa: IpAddr,
    expires_ms: u64,
}

fn key(secret: &str) -> String {
    format!("{TOKENS}{}", pki::hex(&Sha256::digest(secret.as_bytes())))
}

/// Makes a token for a host, which is added to the site if it is new.
pub(crate) async fn make(engine: &Engine, request: TokenRequest) -> Result<Token, Fault> {
    let ttl = request.ttl_s.unwrap_or(TTL);
    if ttl == 0 || ttl > LONGEST_TTL {
        let message = format!("a token's lifetime of {ttl} s is not possible");
        return Err(Fault::bad_request(message, "use 1 to 2592000 seconds (30 days)"));
    }
    let known = engine.core().desired().hosts.get(&request.name).map(|h| h.value.pa);
    let pa = match (known, request.pa) {
        (Some(known), Some(pa)) if known != pa => {
            let message = format!("host {} has provider address {known}, not {pa}", request.name);
            return Err(Fault::conflict(message, "leave the address out, or remove the host first"));
        }
        (Some(known), _) => known,
        (None, Some(pa)) => {
            let object = Spec::Host(HostSpec { name: request.name.clone(), pa, rewrite_pool: None });
            engine.change_items(None, &[ChangeItem::Put { object }], WaitQuery::default()).await?;
            pa
        }
        (None, None) => {
            let hint = "give its provider address with the request, or add the host first";
            let mut fault = Fault::not_found(&Key::Host(request.name));
            fault.error.hint = hint.into();
            return Err(fault);
        }
    };
    forget_expired(engine).await?;
    let secret = pki::secret()?;
    let expires_ms = clock::ms() + ttl * 1000;
    let stored = Stored { host: request.name.clone(), pa, expires_ms };
    let value = serde_json::to_vec(&stored).map_err(|e| Fault::internal(&e))?;
    engine.site().store().txn(Txn::default().put(key(&secret), value)).await?;
    let text = format!("a join token for {} was made, good for {ttl} s", request.name);
    engine.events.happened(Happening::new("token", text).host(&request.name));
    Ok(Token { token: format!("tenet1.{}.{secret}", engine.pki.fingerprint()), expires_ms })
}

/// Takes a token and signs the request of its host: name and address.
pub(crate) async fn join(engine: &Engine, join: &Join) -> Result<(HostName, IpAddr, String), Fault> {
    let refused = |why: &str| {
        if engine.figures.tell_refused_join(clock::ms()) {
            engine.events.happened(Happening::new("refused", format!("a join was refused: {why}")));
        }
        let message = format!("the join token is refused: {why}");
        Fault::new(StatusCode::FORBIDDEN, "token", message, "ask for a new one with `tenet host token`")
    };
    let token: JoinToken = join.token.parse().map_err(|_| refused("it is not of the form of a token"))?;
    let key = key(&token.secret);
    let store = engine.site().store();
    let pair = store.get(&key).await?.ok_or_else(|| refused("it is unknown or was used before"))?;
    let stored: Stored = serde_json::from_slice(&pair.value).map_err(|e| Fault::internal(&e))?;
    if stored.expires_ms <= clock::ms() {
        return Err(refused("it has expired"));
    }
    let pa = engine.core().desired().hosts.get(&stored.host).map(|h| h.value.pa);
    if pa != Some(stored.pa) {
        return Err(refused("its host was removed or has another provider address now"));
    }
    // A bad request must not cost the token.
    let certificate = engine.pki.sign_host(&join.csr_pem, &stored.host, std::time::SystemTime::now())?;
    let condition = Condition::ModRevision(Order::Equal, pair.mod_revision);
    let taken = store.txn(Txn::default().when(key.clone(), condition).delete(key)).await?;
    if !taken.succeeded {
        return Err(refused("it is unknown or was used before"));
    }
    let text = format!("{} joined the site", stored.host);
    engine.events.happened(Happening::new("joined", text).host(&stored.host));
    Ok((stored.host, stored.pa, certificate))
}

async fn forget_expired(engine: &Engine) -> Result<(), Fault> {
    let store = engine.site().store();
    let now = clock::ms();
    for pair in store.range(TOKENS).await?.items {
        let over = serde_json::from_slice::<Stored>(&pair.value).map_or(true, |s| s.expires_ms <= now);
        if over {
            store.txn(Txn::default().delete(pair.key)).await?;
        }
    }
    Ok(())
}
