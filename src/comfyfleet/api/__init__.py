"""Our HTTP routes as data: what is asked, who may ask, what is answered. No network, no ComfyUI."""

from comfyfleet.api.fields import NAME_PATTERN, Field, Given
from comfyfleet.api.route import BASE, JSON, Access, Route
from comfyfleet.api.routes import ROUTES

__all__ = ["BASE", "JSON", "NAME_PATTERN", "ROUTES", "Access", "Field", "Given", "Route"]
