"""The controller's REST API (FastAPI): `app` puts it together, `auth` says who may do what, every other module is one group of routes."""
