//! A provider network that does not lead everywhere.

use crate::World;
use tenet_hostnet::Netns;

/// The provider network between two hosts, cut until dropped.
#[derive(Debug)]
pub struct Cut {
    router: Netns,
    rules: Vec<[String; 4]>,
}

impl Cut {
    /// Cuts it, both ways.
    ///
    /// # Panics
    /// If the router does not take the rules.
    #[must_use]
    pub fn new(world: &World, a: &str, b: &str) -> Self {
        let pa = |h: &str| world.lab.host(h).unwrap().record().pa.to_string();
        let rules = [(pa(a), pa(b)), (pa(b), pa(a))];
        let rules = rules.map(|(from, to)| ["from".to_owned(), from, "to".to_owned(), to]).to_vec();
        let cut = Self { router: world.lab.router().unwrap(), rules };
        cut.rule("add");
        cut
    }

    fn rule(&self, what: &str) {
        for rule in &self.rules {
            let output =
                self.router.command("ip").args(["rule", what]).args(rule).arg("blackhole").output().unwrap();
            assert!(output.status.success(), "ip rule {what}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.rule("del");
    }
}
