# ruff: noqa: INP001  scripts are run, and are no package
"""Writes deploy/monitoring/dashboards/*.json, for Grafana 11 and 12: what `scripts.panels` says, as Grafana has it.

.venv/bin/python -m scripts.dashboards
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.panels import COLUMNS, DASHBOARDS, Panel, Variable

FOLDER = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboards"
_SCHEMA = 39  # Grafana 11's; 12 takes it as it is
_HEIGHT, _STAT_HEIGHT = 8, 4
_COLOURS = {
    "ok": "green",
    "triton_error": "yellow",
    "refused": "blue",
    "cancelled": "text",
    "expired": "orange",
    "lost": "red",
    "failed": "dark-red",
}
"""An outcome has the same one everywhere."""
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]  # Any: a JSON object


def page(name: str) -> str:
    """The file of a dashboard."""
    dashboard = DASHBOARDS[name]
    made = {
        "uid": f"headrace-{name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["headrace"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Headrace",
                "tags": ["headrace"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": [_source(), *map(_variable, dashboard.variables)]},
        "panels": list(_panels(dashboard.rows)),
    }
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _source() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1}


def _variable(variable: Variable) -> Json:
    made: Json = {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": _SOURCE,
        "query": {"qryType": 1, "query": variable.query, "refId": variable.name},
        "definition": variable.query,
        "refresh": 2,
        "sort": 1,
    }
    if variable.several:
        everything = {"text": ["All"], "value": ["$__all"]}
        made |= {"multi": True, "includeAll": True, "allValue": ".*", "current": everything}
    return made


def _panels(rows: Mapping[str, tuple[Panel, ...]]) -> Iterator[Json]:
    number = top = 0
    for title, panels in rows.items():
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}
        top += 1
        left = height = 0
        for panel in panels:
            number += 1
            own = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
            if left + panel.width > COLUMNS:
                left, top = 0, top + height
            place = {"h": own, "w": panel.width, "x": left, "y": top}
            yield {"id": number, **_panel(panel), "gridPos": place}
            left, height = left + panel.width, own
        top += height


def _panel(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit}
    if panel.kind != "stat":
        defaults["min"] = 0
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.steps:
        steps = [{"value": value, "color": colour} for value, colour in panel.steps.items()]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": _whole(query),
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(panel)},
        "options": _options(panel),
    }


def _overrides(panel: Panel) -> list[Json]:
    if "{{outcome}}" not in panel.queries:
        return []
    return [
        {
            "matcher": {"id": "byName", "options": outcome},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for outcome, colour in _COLOURS.items()
    ]


def _whole(query: str) -> str:
    """See the top of `scripts.panels`."""
    chosen = 'pool=~"$pool"'
    return (
        query.replace("{", f"{{{chosen}, ").replace(f"{chosen}, }}", f"{chosen}}}").replace("[i]", "[$__rate_interval]")
    )


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background_solid", "graphMode": "none"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Oranges", "mode": "scheme"}}
        case "timeseries":
            tooltip = {"mode": "multi", "sort": "desc"}
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": tooltip}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(page(name), encoding="utf-8")
