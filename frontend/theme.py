"""Colours and fonts of the page as a Gradio theme. The layout is in the CSS files.

The fonts are those of the reader's system, so the browser fetches none.
"""

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
STYLES = [
    HERE / f"{name}.css"
    for name in ("style", "header", "conversation", "thoughts", "code", "composer", "phone")
]
SCRIPT = HERE / "page.js"

COLOURS = {  # Gradio's variable: light, dark
    "body_background_fill": ("#faf9f6", "#15171a"),
    "background_fill_primary": ("#ffffff", "#1d2024"),
    "background_fill_secondary": ("#faf9f6", "#15171a"),
    "block_background_fill": ("#ffffff", "#1d2024"),
    "input_background_fill": ("#ffffff", "#1d2024"),
    "input_border_color": ("#e3dfd7", "#31363c"),
    "input_placeholder_color": ("#767b82", "#8b929a"),
    "code_background_fill": ("#f1efea", "#0f1113"),
    "border_color_primary": ("#e3dfd7", "#31363c"),
    "border_color_accent_subdued": ("#cfe3df", "#28453f"),
    "color_accent_soft": ("#e6f1ef", "#1c312d"),
    "body_text_color": ("#1f2328", "#e7e6e2"),
    "body_text_color_subdued": ("#666c74", "#9aa1a9"),
    "block_info_text_color": ("#666c74", "#9aa1a9"),
    "block_label_text_color": ("#666c74", "#9aa1a9"),
    "link_text_color": ("#0f6b63", "#5fd4c4"),
    "slider_color": ("#0f766e", "#2fb8a6"),
    "button_primary_background_fill": ("#0f766e", "#2fb8a6"),
    "button_primary_background_fill_hover": ("#0b5f58", "#46cbb9"),
    "button_primary_text_color": ("#ffffff", "#06211d"),
    "button_secondary_background_fill": ("#ffffff", "#1d2024"),
    "button_secondary_background_fill_hover": ("#f1efea", "#272b30"),
    "button_secondary_border_color": ("#e3dfd7", "#31363c"),
    "button_secondary_text_color": ("#1f2328", "#e7e6e2"),
}


def build_theme() -> gr.themes.Base:
    """Return the theme, light and dark."""
    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    light = {name: pair[0] for name, pair in COLOURS.items()}
    dark = {f"{name}_dark": pair[1] for name, pair in COLOURS.items()}
    return base.set(color_accent="#0f766e", **light, **dark)
