from __future__ import annotations
from dataclasses import dataclass
from typing import Any
def _mk(name, *fields):
    import dataclasses
    return dataclasses.make_dataclass(name, [(f, Any) if isinstance(f,str) else (f[0], Any, f[1]) for f in fields], frozen=True, kw_only=True)
WorkerJoined=_mk("WorkerJoined","worker_id",("only_run",None)); WorkerLost=_mk("WorkerLost","worker_id","reason")
RunSubmitted=_mk("RunSubmitted","run_id","units"); RunCancelled=_mk("RunCancelled","run_id","reason")
UnitDone=_mk("UnitDone","worker_id","unit_id"); UnitFailed=_mk("UnitFailed","worker_id","unit_id","failure")
UnitProgress=_mk("UnitProgress","worker_id","unit_id","fraction"); Tick=_mk("Tick")
Start=_mk("Start","worker_id","unit"); Interrupt=_mk("Interrupt","worker_id","unit_id"); Deliver=_mk("Deliver","unit","worker_id","seconds")
Discard=_mk("Discard","unit_id","worker_id"); FinishRun=_mk("FinishRun","run_id"); FailRun=_mk("FailRun","run_id","message"); CancelRun=_mk("CancelRun","run_id","reason")
Event=Any; Instruction=Any
class Dispatch:
    def __init__(self): self.idle=[]; self.only={}; self.pend=[]; self.run={}; self.left={}; self.w=set()
    def next_deadline(self): return None
    def handle(self,e,now):
        out=[]
        n=type(e).__name__
        if n=="WorkerJoined": self.idle.append(e.worker_id); self.only[e.worker_id]=e.only_run; self.w.add(e.worker_id)
        if n=="RunSubmitted": self.pend+=e.units; self.left[e.run_id]=len(e.units)
        if n=="WorkerLost":
            self.w.discard(e.worker_id)
            if e.worker_id in self.idle: self.idle.remove(e.worker_id)
            for k in [k for k in self.run if k[0]==e.worker_id]: self.pend.insert(0,self.run.pop(k)[0])
            if not self.w:
                for r in self.left: out.append(FailRun(run_id=r,message="all lost "+e.reason))
        if n=="UnitDone":
            u,t=self.run.pop((e.worker_id,e.unit_id)); self.idle.append(e.worker_id)
            out.append(Deliver(unit=u,worker_id=e.worker_id,seconds=now-t)); self.left[u.run_id]-=1
            if not self.left[u.run_id]: out.append(FinishRun(run_id=u.run_id)); del self.left[u.run_id]
        if n=="UnitFailed":
            k=self.run.pop((e.worker_id,e.unit_id),None); self.idle.append(e.worker_id)
            if k and k[0].run_id in self.left: out.append(FailRun(run_id=k[0].run_id,message=str(e.failure))); del self.left[k[0].run_id]; self.pend=[p for p in self.pend if p.run_id!=k[0].run_id]
        if n=="RunCancelled" and e.run_id in self.left:
            self.pend=[p for p in self.pend if p.run_id!=e.run_id]; del self.left[e.run_id]
            out+= [Interrupt(worker_id=a,unit_id=b) for (a,b) in self.run if b.startswith(e.run_id)]; out.append(CancelRun(run_id=e.run_id,reason=e.reason))
        for w in list(self.idle):
            for u in self.pend:
                if self.only[w] in (None,u.run_id):
                    self.pend.remove(u); self.idle.remove(w); self.run[w,u.id]=(u,now); out.append(Start(worker_id=w,unit=u)); break
        return out
def largest_remainder(total, weights):
    n=len(weights); b,r=divmod(total,n); return [b+(i<r) for i in range(n)]
