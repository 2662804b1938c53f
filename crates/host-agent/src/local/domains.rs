//! Which libvirt domain is which VM, as those said who had it prepared. Kept over restarts of the agent.

use crate::keep::Kept;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tenet_model::VmRef;
use tokio::sync::Notify;

const FILE: &str = "domains.json";

/// The domains of this host; clones are the same list.
#[derive(Clone, Debug)]
pub(crate) struct Domains {
    folder: PathBuf,
    list: Arc<Mutex<Kept<BTreeMap<VmRef, String>>>>,
    /// A hook of libvirt's has asked for something, and who waits for that.
    hook: Arc<(AtomicBool, Notify)>,
}

impl Domains {
    /// What an earlier run noted in the state directory; what cannot be read is told and forgotten.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let list = Kept::load(state_dir.join(FILE), "libvirt's domains");
        Self { folder: state_dir.to_owned(), list: Arc::new(Mutex::new(list)), hook: Arc::default() }
    }

    /// Where they are kept.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A hook of libvirt's asks for something: there is a libvirt.
    pub(super) fn hook_asks(&self) {
        self.hook.0.store(true, Ordering::Relaxed);
        self.hook.1.notify_one();
    }

    /// Whether a hook has asked since this was looked at last, or one has brought domains that are here still.
    pub(crate) fn called(&self) -> bool {
        self.hook.0.swap(false, Ordering::Relaxed) || !self.lock().list().is_empty()
    }

    /// Waits until a hook asks; at once if one has since the last wait.
    pub(crate) async fn call(&self) {
        self.hook.1.notified().await;
    }

    /// Notes a VM's domain.
    pub(crate) fn note(&self, vm: &VmRef, domain: &str) {
        self.lock().change(|list| {
            if list.get(vm).is_some_and(|d| d == domain) {
                return false;
            }
            // A domain is one VM only, whatever it was before.
            list.retain(|_, d| d != domain);
            list.insert(vm.clone(), domain.to_owned());
            true
        });
    }

    /// Forgets a VM's domain.
    pub(crate) fn forget(&self, vm: &VmRef) {
        self.lock().change(|list| list.remove(vm).is_some());
    }

    /// A VM's domain.
    pub(crate) fn of(&self, vm: &VmRef) -> Option<String> {
        self.lock().list().get(vm).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(VmRef, String)> {
        self.lock().list().iter().map(|(vm, domain)| (vm.clone(), domain.clone())).collect()
    }

    /// A domain's VM.
    pub(crate) fn vm(&self, domain: &str) -> Option<VmRef> {
        self.lock().list().iter().find(|(_, d)| *d == domain).map(|(vm, _)| vm.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Kept<BTreeMap<VmRef, String>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_hook_that_asks_is_a_sign_once_and_its_domains_as_long_as_they_are_here() {
        let dir = std::env::temp_dir().join(format!("tenet-called-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let domains = Domains::load(&dir);
        assert!(!domains.called());
        domains.hook_asks();
        domains.call().await;
        assert!(domains.called() && !domains.called());
        let sql = "a/sql".parse().unwrap();
        domains.note(&sql, "sql-1");
        assert!(domains.called() && Domains::load(&dir).called(), "also after a restart");
        domains.forget(&sql);
        assert!(!domains.called());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn domains_outlive_the_agent() {
        let dir = std::env::temp_dir().join(format!("tenet-domains-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (sql, web): (VmRef, VmRef) = ("a/sql".parse().unwrap(), "a/web".parse().unwrap());
        let domains = Domains::load(&dir);
        domains.note(&sql, "sql-1");
        domains.note(&web, "web-1");
        // The name was given anew.
        domains.note(&web, "sql-1");
        let again = Domains::load(&dir);
        assert_eq!((again.of(&sql), again.of(&web)), (None, Some("sql-1".into())));
        again.forget(&web);
        assert_eq!(Domains::load(&dir).of(&web), None);
        fs::write(dir.join(FILE), "nonsense").unwrap();
        assert_eq!(Domains::load(&dir).of(&web), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
