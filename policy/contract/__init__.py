"""What every policy must keep to, as suites that say in words what is broken.

from policy.contract import check, check_system
check(MyOrder)                                      # an order
check_system(SYSTEMS["fastswitch"])                 # a set of mechanisms
check_system(SYSTEMS["fastswitch"], eviction=Mine)  # one mechanism in place of the named one
"""

from policy.contract.orders import check, violations
from policy.contract.systems import check_system, system_violations

__all__ = ["check", "check_system", "system_violations", "violations"]
