//! The text format that scrapers get who do not ask for OpenMetrics.

/// OpenMetrics in the older text format of Prometheus (0.0.4), in which a counter is called as its samples are, units are
/// not declared, and nothing marks the end.
pub fn in_older_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, says)) = help.take().filter(|(of, _)| *of == name) {
                text += &format!("# HELP {name}{total} {says}\n");
            }
            text += &format!("# TYPE {name}{total} {kind}\n");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
