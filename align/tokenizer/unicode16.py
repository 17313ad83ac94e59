"""General categories of characters (letter, digit, mark ...) in Unicode 16.0.

Ids must not depend on the Python version, but Python's tables (14.0 in 3.11, 16.0 in 3.14) and those of the `regex`
package (18.0 in 2026) classify newly assigned letters differently. This is the table of Hugging Face `tokenizers`
0.22-0.23 and `tiktoken` 0.9-0.14; a test compares every code point with both.
"""

from base64 import b85decode
from bisect import bisect_right
from functools import cache
from zlib import decompress

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF

# White_Space, which is \s in the regular expressions of other languages. Python's \s also matches U+001C..U+001F.
WHITE_SPACE: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
)

# Runs of equal category from U+0000 on, as "<category><length in hex>" joined by spaces, zlib, base 85.
_RUNS = (
    "c-rk-$&TYV68)9@1aXyg_SH5F_*OSr3(%;PH9&R#|1egCl*+EG9`rKReM!m`Nd<$!h!;zqdSAVK`Q~13OL)2W)ZXCt2+!{2K2v)ep!F};p~Ln*2W"
    "-!8uA>PHO}c+AZBOm_m0#j2BekdAJN{(p=;O<M;pZ{~p3m_67alxOpS**<D}0_-CsMvbAJ3cMIpBJQv>GRz-)b1#(2v&!-r($?v-N-R{J*mG2mRr"
    "oUw#MPZ#?L?^ZX~i=Ra6~Ki;FHDs4-o=U>g*A3gu&XX-zoDg4CuY2Vg6xv;#ApO_yL3Bap+yqsqT3am_<`_hi3O{J~j1t~dd-OJ@!SML{;QT+S#^"
    "w<Z2#VWA$6&3rHh@`$y`sCe4h^3>2T?KRGavlCiwkG{eI(v6z-U1R){cVH+%+ckUUM{2mi3Q&O!wksJ(ek~{st|5VhJ$Gp%fX8~fTx~DU!H!z7nd"
    "igiPEuaVPFHQ>w!823>Uz!)3f}ZvLZr4k+k}yyo1RA;{aKnmjX9YK`kAum>5sOY92pvUNWmL{AR5P@bWA>m_5=%ziARIa0c+YkX^kkBW?)hotf^^"
    "j_~jxek`d)%HZ|sIr0)7#<utkLZksHg&DBMy~p)4eR!6^&<1W34!$iD@qckGzC1ApsS{{G1JID>UNV#G@dd8Bcv-rPf{m0-S1*?yhKG#gzz^P9c@"
    "E{dDQ)C;UfD;C_6EB<K7dKb5@8K9$8+m4zo=z9r6s%~JXt@^eZANAqH`J~_QdB!YXu|<#xnDfzt_SHMEO0Vd6hdl_e(Ea%x1kqV*Nquc`+f{<03)"
    "`9aZ2lHE&clQ6r%j{8-RSa(Z?<!dl%R&;5w7bil<VS5X%fPVz2GJMmRnxp!lZ5z%y0Xq_KA-j4`#M&6E(89uxc{qZr2b9cq#>x_uVkp{!L$iKZg1"
    ")(#THgMb1X);YjV?f5PCvF*;nO?g8S5zSx8F|O|iPs5CXR|+9y%*J%WBAp`N5Ef4&ehBfSw$%E?~WA4-jGwZa!qzc%JD;Ly6+rgdM6viGEW3zU*2"
    "4tEn(b;tn2yM{ej^7mT!wy5$@f2z<c6%Bzfs+*L&HymJbjoj)dEZFt}!S4~4(Ax!aMy9&{z5sKKq%Hofv1wppmDm|Ra*2|#sE<dCLr=)gEUQWi)D"
    "vYX_0vwP8*)muY0Png9>(<uvytcxq=VnExY;S}Z|NHuY=W5em*wHoo^mX1`2^pO?i$a0hv832V~N?C8w8Q;rHT0Qe`;AHV@6fqEU9xQs1m(ARI70"
    "I)*G$X6m{z!J0rHe#Tqy{8uPzj;+^5!a_E@ufu;6PYOoT9`nx*m_!W}>_9Vrw*%-x)~T@Am_}`{YbP5MjSU3~H-xMaHj%8j<{}?4+a1`<58_y;2L"
    "fu6#ZBDja1z1>wp=r^n9r{ej@;io0#Ztaw&zFbX9!sLrP|ZDo|_D>G~~!rC9A&b*+?Y0OzY6nIHQ@@zl=34TUdh8E<4B9kN!gq56*E1M1scS7QwB"
    "$gm=F$&0IB&$?9CRN@9sXVJKYhE%dkjUyQD8xdvxn5tunZ9QQ=Q`CfSDtnUN>G7cHa3+o8xp=X!nIL=&akdwsyfyD%C14!RjW5ZW6F&laSgCx!Rc"
    "izBv0lOX=6ZEj7b_|#g;Y7AgHkW(&7oqNfQL`<qO`3KrlGo_vWi!@2CtUjo*mJ5LtK{W5WWf8rm_z13i=ToQbEet?`uLvU~On-e7h^nDrT0%MHqR"
    "QahyeFUAsH)RZUC7)8kEP;lDoz-j{yc=o`!SpDmx{@eZmZTl}D{x;{(sNp@oi6L&dzxnX}HYWSNUFVMLn!h#&ErUi$Z2YRpxYAN2_x*e5j{<qHAC"
    "VjO!*>%t)BB_Ogmk}rgIG|3hXZL^NaI0D4gtn5-aI>0v|kEMU;g884y6R!bq=6K#NdJQhnkgqtXWA!A05txH7JrowpD^R7*v?otmYY0h~1`-K=wf"
    "PxcB5|qvjtuq%wjb>am{yqeD1L?LM0nG(arxDWshc5>uZ$XbDSfG6_rMwd7!6EeVxJ&4~&PcXS$yHNUO_{L)iKUKbjLhy{`i0LU@c6?KJeTXS3B5"
    "Dk<U&c1L}kAQ#gLfiqG(!APqCY?OO0{{gNiCGBzM7#v>gbqalryLfKBT$e1LQ~6afU|9YtrPc5?@9S=dqtuEg8+k+=DF<ivr7O!U~^RkbcNqd%J;"
    "t$ri0Gn3R+5l`2i?#iH{GM=xd4oR_vZ-&{~jM+2&WmcVhYRAm&d&+J9C;@b6y`AZo|HL*Q*tFzDOs;us-|KP(Vgl8Z}Vk8qX<=qPSf%}!vw3oQOv"
    "i=pm~?NECV%(LxpwK|1b`)+50e(P!#g-E+9p3LCM{>XZ0n+A?#eBxSDh6OVT9bdB4qW^ne24pP;V@&Oh#^pg>|9~O@iatRNJyUAq`r4`+hM|F()B"
    "}3_^BQ`;uQB1QF?dWR&zx()xI&VwLNLy>f5_BPV?b9hHA_cXpwf|1U^u>6kwL-m7DcK+>o;uCCQ?`QrYJD#aS=mbZ4Z<2IeC|O53#P<zYZdq#nPw"
    "`xPal3I0JrPG7*J@`2Tz3B~m<!`)YDNe>N?%M(c7BE=fdX^sfsf1ufEQZNiU#A^dao`iF&V{?qdh`M&%aJWjjz_pTEU_fCG5$%C8rx7I|&iAu~eV"
    "`hdfHJdp}Tg27u*>KjKUx4PJbfz~srA*<^8^&`R4x$B|S#kWT(Qq23sGiPaxQVqC2XEK#Ug_&O`=C+82gk`C66zf|`4RT9J--Xb1+;RKav&liFHL"
    "bj(yc9jJK1DUHVa8Kt~DHMG?cf7ay^IgoRkG*%v<a;kHjRCV3WMm8qRe#o!H<2((WFU?l!Z)tRnr?OLV#8+>+n52apDm0#uw8$>pEL1%}_LqPVk7"
    "McU-u`blpC)sHT6fZWxR4x?<<>049$iBmCj723Nj;pL1h%vh6#Q_=NLh8rDuo*Ii!2gy|1LW<xk)q&Bc9*QIouAITlG7!uN1WB+l2i3Er2MQ?PjN"
    "^Bclq<b(gs^)5zdJ-0|6s%*;9a4(bTruKXf8(<26U)+j?)SjIs{=^Lv9nK7--<1RWNN=x7&u(rAy-nfn*a$y^jRhYqA__E$*|as^&y0x%QEPUlFb"
    ";@U!OxyOSJ-qZH6qdL|w@68J6m<-x86WlF9<DPgh}&}L#t=(wnx&+Wd*C=@NkeuESs`BkCu1tDd2UF(t%C`L(1Ma0vfey*>IPBT|qB+1sOW{tcE="
    "X3E!`3|fLgx25>#3MF$_f00f>TKU|u~dkwB7S2`{Ko0Mw^|D@Nv-hvSAPGh>PEJ!8bTqhlcZI{dT(aOZT5UjGx!}?bDB-ffs?G1EveA*h*~)U5F9"
    "%Qz}F&V4QAxav}!L1aHxqWyK+$no1u<{0kv8sz9fnTrGTWAqI8U^>eu99;@ocB*FFrUfG4svv|L2dN&<7h@2Ew*QVB+dtYaUf*P<ZU!fg>I2iZm~"
    "9QVSQz&mcF3ZZ7}-XpilOH`W3s+y`;PtO5>RiLUO%xps@>q(fv=Ik)~H!Cd5Y{nCNZKy98P0#S{0R-Pk@|XqS!U^ED{0H@TAc}~i$d69zwYbjhf!"
    "F9p8Zb+GSKy1sp2XX9aSZ|NEH@n6#N3ROvZh)pXUsUIl?_B0v}{Ds1ghjolD&>Kl*(+YRa#_dg78(6myOm=Fy_!gIoh+Ax-LtPWG|uq1L<jbR%AN"
    "j#-=kQ(+Wm0MVzRAh?GcqU>`KEY4e^pn_wg~Iet(s;7qwdr*_t0yue#ehByBA7KS-f)FUMCi^9S|kyRq3CS#tpiZU^!+m-96ipu(ecEZ&^3?kPux"
    "wt8p+f+wB<tV&nt0}>YzXwUN2a`w+W`(E;<#h$8&OrG+TJgw6`fZ&9aahD+z382s)uxPcJM#t?i#!f5mQ_F490-r-@`uU%BLWOucJr=wAa7VEQnc"
    "zKlwQ|M^{+ozB5JJwUURH)@M~-f#p%&<j$g0RT3}p01YsA@$gjTAqAxOd&8}Ro*~zA(;)jz~h1mjwweH9I6?8RQ@p7`g3ib9p^i165a<lY3Sj;-I"
    "`@+mK7b)M^@nOYk93?!B(Nq|C<K`u@6J$DSj7k>%WvU{&naX9l?oue^)2>Qnf3gYnCKsRtEnLx}mCMtucZ}+D+(sG;uiB$R+swB!tQB=!?Re3`RJ"
    "Sp4Qp;x+sZ52U|L{t$ir$56YmwMUaHZvX>f-)*@l6vKhi=z~TOy{Z=&YnAx7P(TD2@ETqQk=>IS4K81|nQ}V*Ma$4b@T?L4vbr9z4`?eT(U;Of|{"
    "GIBsgCLfl8>afg=%3)p)#7|g<+N}LqqOr|_g{Pt)&vpwjfHOyS!SZkRcc(yk!&Fr-H^Sas~h0mx29~B3HF~&-QOq2R-Z#Aeg!Vfu7t(ibJ*6}qTU"
    "*v==0L9sB43myVA{>Yk>q)?N#Lzkv&*N?JeynjPgoA4V##%HQxSranAuwuYWCM%0wgITzRsb8aoR2sm!u^iZYDT3^u)vfc>OWO_1ZBtr9R<XjdhK"
    "cshu2urhjR$ro0MJXRd=AD4LWb45~w?urrt?bKu*IzQLS>KG6yeDCwQb^AMQ&c0<Hw5nwnfybV>P1{1NB3?~EJc*V0M-%?E(B3vm~dtJU?fEAkP&"
    "aYe#gvvru>52A45S~3y#gLgam^iwZ;YWcs1^&$U}y&B294uMj&a6d!M@kQ*DBHK~RSV{3r=06E0^!?!Sb@ES#k<<WIpbW{@6FLLVtoG)cJ_i(4xr"
    "22@Fr74h%@@q8_E{^tIZZQ)VQ^CD7kO}!e?uB7LKt+@<@Jzd`dSfuV&Dz<t1{*&9)u*I?Gt-#EpHIC#GCh2op<4k=1IRPmC6BQ6XC&mD2n+|bRqT"
    ">(2xvOxkcXo*T`d!QFhq2+mY-{o4Jj<e%prctpB}sKQHcZfBb+x#p(j=!#=o(H!!kO>MAa(pjz21>Skh<HgU{HTF(dt)2$sYg%0|Fw$rTCa{Q4D0"
    "Tr9Kpe-ke&SFY)Xrw|{YHcO5RC5jgk|x&4y(#9M%<n+fMT)EM65F|pAzg=ha@5M3B)gO$@?92pNu#f9c<}17t5#xR#d@$vRv;B!9xE;SuYwr$VO0"
    "06QOh_4{f{Ax8Mhr(p~G_;ade3K4{23~g}b3oPNJM6{AVBZHlThcc$!8C(k#<7(HGap{{q;0g~9"
)


@cache
def _runs() -> tuple[tuple[str, int, int], ...]:
    """``(category, first code point, last code point)`` of each run, in order."""
    runs, start = [], 0
    for run in decompress(b85decode(_RUNS)).decode().split():
        end = start + int(run[2:], 16)
        runs.append((run[:2], start, end - 1))
        start = end
    return tuple(runs)


def category(char: str) -> str:
    """The general category of a character."""
    return _runs()[bisect_right(_runs(), ord(char), key=lambda run: run[1]) - 1][0]


@cache
def category_ranges(name: str) -> Ranges:
    """Code points of a general category (``Lu``) or a group of them (``L``), as ascending inclusive ranges.

    Raises:
        KeyError: no category begins with this name.
    """
    merged: list[tuple[int, int]] = []
    for category, first, last in _runs():
        if not category.startswith(name):
            continue
        if merged and merged[-1][1] == first - 1:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    if not merged or not name:
        raise KeyError(name)
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """The code points outside ascending ranges."""
    gaps, start = [], 0
    for first, last in ranges:
        if first > start:
            gaps.append((start, first - 1))
        start = last + 1
    return (*gaps, (start, LAST)) if start <= LAST else tuple(gaps)
