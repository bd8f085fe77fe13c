"""What the page may ask, by subject: each file is a router."""

from unraze.studio.routes import compare, destroy, jobs, pictures, runs, session

__all__ = ["ROUTERS"]

ROUTERS = (
    session.router,
    runs.router,
    jobs.router,
    pictures.router,
    destroy.router,
    compare.router,
)
