"""What every policy must keep to, as suites that say in words what is broken.

from policy.contract import check, check_router, check_system
check(MyOrder)                                      # an order
check_system(SYSTEMS["fastswitch"])                 # a set of mechanisms
check_system(SYSTEMS["fastswitch"], eviction=Mine)  # one mechanism in place of the named one
check_router(MyRouter)                              # a router of a fleet
"""

from policy.contract.orders import check, violations
from policy.contract.routers import check_router, router_violations
from policy.contract.systems import check_system, system_violations

__all__ = [
    "check",
    "check_router",
    "check_system",
    "router_violations",
    "system_violations",
    "violations",
]
