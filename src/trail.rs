//! What a request showed and what was made of it, step by step: kept only where somebody asks, which `explain` does.

/// Steps so far; none are kept by default.
#[derive(Debug, Default)]
pub struct Trail(Option<Vec<Step>>);

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    /// What was seen, and what came of it. Never a secret.
    pub says: String,
}

impl Trail {
    /// One that is kept.
    pub fn kept() -> Self {
        Self(Some(Vec::new()))
    }

    pub fn note(&mut self, name: &'static str, says: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { name, says: says() });
        }
    }

    pub fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }
}
